/* Resizing and gray conversion in integers, byte-identical to `data/resize.py`.

   An image is {height, width, channels, data}: data is a Uint8Array [H, W, C], C = 1 (gray) or 3 (RGB), or a Uint16Array,
   which is first scaled to bytes as in data/scaling.py.
   An inputSpec describes the input of a model: {height, width, channels, fit}, fit "stretch" or "crop", and, for a model
   that was trained on 16-bit images, "range" [low, high].

   Integers up to 2^53 are exact, and so is Math.floor(a / b) for the values that occur (below about 2^32). */

const GRAY_WEIGHTS = [77, 150, 29];
const FULL_RANGE = [0, 65535];

/* The part of an image that is used: all of it for "stretch", the largest centered window of the target's aspect ratio
   for "crop". */
export function usedWindow(height, width, inputSpec) {
    const across = width * inputSpec.height;
    const down = height * inputSpec.width;
    if (inputSpec.fit === "crop" && across > down) {
        const used = Math.max(1, Math.floor(down / inputSpec.height));
        return { top: 0, left: Math.floor((width - used) / 2), height, width: used };
    }
    if (inputSpec.fit === "crop" && across < down) {
        const used = Math.max(1, Math.floor(across / inputSpec.width));
        return { top: Math.floor((height - used) / 2), left: 0, height: used, width };
    }
    return { top: 0, left: 0, height, width };
}

/* Source positions and weights of each position of a target axis: [{index, weight}], and the sum of the weights. An axis
   that shrinks averages areas, an axis that grows is interpolated linearly.
   data/resize.py divides weights and total by their common factor to save bits, which does not change the result. */
export function axisTaps(source, target) {
    const taps = [];
    for (let position = 0; position < target; position++) {
        taps.push(target <= source ? shrinkingTaps(position, source, target) : growingTaps(position, source, target));
    }
    return { taps, total: target <= source ? source : 2 * target };
}

function shrinkingTaps(position, source, target) {
    const index = [];
    const weight = [];
    // A source pixel is `target` units long, a target pixel `source` units; the weight is the length of the overlap.
    const begin = position * source;
    const end = begin + source;
    for (let place = Math.floor(begin / target); place * target < end; place++) {
        index.push(place);
        weight.push(Math.min((place + 1) * target, end) - Math.max(place * target, begin));
    }
    return { index, weight };
}

function growingTaps(position, source, target) {
    const numerator = (2 * position + 1) * source - target;
    const below = Math.floor(numerator / (2 * target));
    const part = numerator - below * 2 * target;
    const inside = (place) => Math.min(Math.max(place, 0), source - 1);
    return { index: [inside(below), inside(below + 1)], weight: [2 * target - part, part] };
}

/* RGB -> one gray channel. */
export function toGray(image) {
    const data = new Uint8Array(image.height * image.width);
    const [red, green, blue] = GRAY_WEIGHTS;
    for (let pixel = 0, at = 0; pixel < data.length; pixel++, at += 3) {
        const sum = red * image.data[at] + green * image.data[at + 1] + blue * image.data[at + 2];
        data[pixel] = (sum + 128) >> 8;
    }
    return { height: image.height, width: image.width, channels: 1, data };
}

/* Scale a 16-bit image to bytes: low becomes 0, high 255, rounded half up in between. */
export function scaled(image, [low, high]) {
    const span = high - low;
    const data = Uint8Array.from(image.data, (value) => {
        const above = Math.min(Math.max(value - low, 0), span);
        return Math.floor((above * 510 + span) / (2 * span));
    });
    return { ...image, data };
}

/* A warning if the depth or the values of an image differ from those of the training images; else "". */
export function depthWarning({ data }, { range }) {
    const isWide = data instanceof Uint16Array;
    if (!isWide) {
        return range ? "an 8-bit image, but the model was trained on 16-bit images; its values are not scaled" : "";
    }
    if (!range) {
        return "a 16-bit image, but the model was trained on 8-bit images; values 0 to 65,535 are scaled to 0 to 255";
    }
    const outside = data.reduce((sum, value) => sum + (value < range[0] || value > range[1]), 0);
    const words = range.map((end) => end.toLocaleString("en")).join(" to ");
    return 2 * outside > data.length ? `most values lie outside the model's range of ${words}` : "";
}

/* Convert an image of any size to the model input. */
export function resize(image, inputSpec) {
    const bytes = image.data instanceof Uint16Array ? scaled(image, inputSpec.range ?? FULL_RANGE) : image;
    let result = cut(bytes, usedWindow(image.height, image.width, inputSpec));
    if (inputSpec.channels === 1 && result.channels === 3) {
        result = toGray(result);
    }
    if (result.height !== inputSpec.height || result.width !== inputSpec.width) {
        result = resizeRows(resizeColumns(result, inputSpec.width), inputSpec.height);
    }
    return result.channels === inputSpec.channels ? result : replicate(result);
}

function cut(image, part) {
    if (part.height === image.height && part.width === image.width) {
        return image;
    }
    const row = part.width * image.channels;
    const data = new Uint8Array(part.height * row);
    for (let y = 0; y < part.height; y++) {
        const from = ((part.top + y) * image.width + part.left) * image.channels;
        data.set(image.data.subarray(from, from + row), y * row);
    }
    return { height: part.height, width: part.width, channels: image.channels, data };
}

/* The column pass, with 8 fractional bits: a Uint16Array [H, w, C] of values up to 65,280. */
function resizeColumns(image, width) {
    const { taps, total } = axisTaps(image.width, width);
    const { height, channels, data } = image;
    const half = Math.floor(total / 2);
    const wide = new Uint16Array(height * width * channels);
    for (let y = 0; y < height; y++) {
        for (let x = 0; x < width; x++) {
            const { index, weight } = taps[x];
            for (let channel = 0; channel < channels; channel++) {
                let sum = 0;
                for (let tap = 0; tap < index.length; tap++) {
                    sum += weight[tap] * data[(y * image.width + index[tap]) * channels + channel];
                }
                wide[(y * width + x) * channels + channel] = Math.floor((256 * sum + half) / total);
            }
        }
    }
    return { height, width, channels, data: wide };
}

/* The row pass, which rounds to bytes. */
function resizeRows(image, height) {
    const { taps, total } = axisTaps(image.height, height);
    const row = image.width * image.channels;
    const data = new Uint8Array(height * row);
    for (let y = 0; y < height; y++) {
        const { index, weight } = taps[y];
        for (let place = 0; place < row; place++) {
            let sum = 0;
            for (let tap = 0; tap < index.length; tap++) {
                sum += weight[tap] * image.data[index[tap] * row + place];
            }
            data[y * row + place] = Math.floor((sum + 128 * total) / (256 * total));
        }
    }
    return { height, width: image.width, channels: image.channels, data };
}

function replicate(image) {
    const data = new Uint8Array(image.data.length * 3);
    for (let pixel = 0; pixel < image.data.length; pixel++) {
        data.fill(image.data[pixel], 3 * pixel, 3 * pixel + 3);
    }
    return { height: image.height, width: image.width, channels: 3, data };
}
