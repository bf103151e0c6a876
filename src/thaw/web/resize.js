/* Resizing and gray conversion in whole numbers: the definition of thaw's data/resize.py, to the byte.

   An image is {height, width, channels, data}: data is a Uint8Array [H, W, C], C = 1 (gray) or 3 (red, green, blue), or
   a Uint16Array, of which bytes are made first, as data/scaling.py says.
   A contract is what a model takes: {height, width, channels, fit}, fit "stretch" or "crop", and "range" [low, high] of
   16-bit values where it was trained on such images.

   Whole numbers up to 2^53 are exact here, and so is Math.floor(a / b) for those that occur (below 2^32 or so). */

const GRAY_WEIGHTS = [77, 150, 29];
const FULL_RANGE = [0, 65535];

/* The part of an image that is used: the whole for "stretch", the largest centered window of the target's aspect ratio
   for "crop". */
export function usedWindow(height, width, contract) {
    const across = width * contract.height;
    const down = height * contract.width;
    if (contract.fit === "crop" && across > down) {
        const used = Math.max(1, Math.floor(down / contract.height));
        return { top: 0, left: Math.floor((width - used) / 2), height, width: used };
    }
    if (contract.fit === "crop" && across < down) {
        const used = Math.max(1, Math.floor(across / contract.width));
        return { top: Math.floor((height - used) / 2), left: 0, height: used, width };
    }
    return { top: 0, left: 0, height, width };
}

/* Where each position of a target axis comes from: [{index, weight}] source positions and weights, and what the weights
   of each position sum to. An axis that shrinks averages areas, one that grows is interpolated linearly.
   data/resize.py divides weights and total by their common factor to save bits; no rounded result changes by that. */
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
    // On a ruler with `target` marks a source pixel and `source` marks a target pixel: the marks that the two share.
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

/* Red, green, blue -> one gray channel. */
export function toGrey(image) {
    const data = new Uint8Array(image.height * image.width);
    const [red, green, blue] = GRAY_WEIGHTS;
    for (let pixel = 0, at = 0; pixel < data.length; pixel++, at += 3) {
        const sum = red * image.data[at] + green * image.data[at + 1] + blue * image.data[at + 2];
        data[pixel] = (sum + 128) >> 8;
    }
    return { height: image.height, width: image.width, channels: 1, data };
}

/* An image of 16 bits as bytes: low becomes 0, high 255, between them rounded half up. */
export function scaled(image, [low, high]) {
    const span = high - low;
    const data = Uint8Array.from(image.data, (value) => {
        const above = Math.min(Math.max(value - low, 0), span);
        return Math.floor((above * 510 + span) / (2 * span));
    });
    return { ...image, data };
}

/* What may make the model's answer for an image wrong: its depth or its values differ from those of training; else "". */
export function depthWarning({ data }, { range }) {
    const isWide = data instanceof Uint16Array;
    if (!isWide) {
        return range ? "an 8-bit image, but the model was trained on 16-bit images; its values are used as they are" : "";
    }
    if (!range) {
        return "a 16-bit image, but the model was trained on 8-bit images; values 0 to 65,535 are scaled to 0 to 255";
    }
    const outside = data.reduce((sum, value) => sum + (value < range[0] || value > range[1]), 0);
    const words = range.map((end) => end.toLocaleString("en")).join(" to ");
    return 2 * outside > data.length ? `most values lie outside the model's range of ${words}` : "";
}

/* An image of any size as the contract asks. */
export function resize(image, contract) {
    const bytes = image.data instanceof Uint16Array ? scaled(image, contract.range ?? FULL_RANGE) : image;
    let result = cut(bytes, usedWindow(image.height, image.width, contract));
    if (contract.channels === 1 && result.channels === 3) {
        result = toGrey(result);
    }
    if (result.height !== contract.height || result.width !== contract.width) {
        result = resizeRows(resizeColumns(result, contract.width), contract.height);
    }
    return result.channels === contract.channels ? result : replicate(result);
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

/* The pass over columns, which keeps 8 fractional bits: a Uint16Array [H, w, C] of values up to 65,280. */
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

/* The pass over rows, which rounds to bytes. */
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
