/* One step of an optimizer for all parameters, each value read and written once. The operations and their order are those of
 * torch's optimizers, which fuse some products and sums where the processor can. */
#include <math.h>
#include <stddef.h>

#if defined(__FMA__) || defined(__ARM_FEATURE_FMA)
#define FUSED(a, b, c) fmaf(a, b, c)
#else
#define FUSED(a, b, c) ((a) * (b) + (c))
#endif

struct item {
    float *parameter;
    const float *gradient;
    float *first, *second;
    size_t count;
};

struct nadam {
    float decay, one_minus_beta1, beta2, one_minus_beta2, bias2, epsilon, gradient_rate, mean_rate;
};

struct sgd {
    float decay, momentum, rate;
    int nesterov;
};

/* `first` is the mean of the gradients, and `second` that of their squares. */
void thaw_nadam(const struct item *items, size_t count, const struct nadam *given)
{
    const struct nadam k = *given;
    for (size_t n = 0; n < count; n++) {
        float *restrict parameter = items[n].parameter, *restrict mean = items[n].first, *restrict square = items[n].second;
        const float *restrict gradients = items[n].gradient;
        for (size_t i = 0; i < items[n].count; i++) {
            const float gradient = k.decay != 0.0f ? FUSED(k.decay, parameter[i], gradients[i]) : gradients[i];
            mean[i] = FUSED(k.one_minus_beta1, gradient - mean[i], mean[i]);
            square[i] = FUSED(k.one_minus_beta2 * gradient, gradient, square[i] * k.beta2);
            const float root = sqrtf(square[i] / k.bias2) + k.epsilon;
            parameter[i] += k.gradient_rate * gradient / root;
            parameter[i] += k.mean_rate * mean[i] / root;
        }
    }
}

/* `first` is the momentum, 0 at the beginning; `second` is not used. */
void thaw_sgd(const struct item *items, size_t count, const struct sgd *given)
{
    const struct sgd k = *given;
    for (size_t n = 0; n < count; n++) {
        float *restrict parameter = items[n].parameter, *restrict momentum = items[n].first;
        const float *restrict gradients = items[n].gradient;
        for (size_t i = 0; i < items[n].count; i++) {
            const float gradient = k.decay != 0.0f ? FUSED(k.decay, parameter[i], gradients[i]) : gradients[i];
            momentum[i] = momentum[i] * k.momentum + gradient;
            const float direction = k.nesterov ? FUSED(k.momentum, momentum[i], gradient) : momentum[i];
            parameter[i] = FUSED(k.rate, direction, parameter[i]);
        }
    }
}
