/* Pooling that is not fused with a convolution. */
typedef struct {
    int16_t columns, channels;         /* of the input */
    int16_t kernel_rows, kernel_columns;
    int16_t stride_rows, stride_columns;
    int16_t out_rows, out_columns;     /* of the output */
} thaw_pooling;
