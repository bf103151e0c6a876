/* Decode PNG files, byte-identical to `data/decode.py`, which uses Pillow.

   The decoder of a browser suffices for opaque 8-bit files, but a canvas stores colors premultiplied by alpha, which
   loses bits, and 8 bits of 16-bit channels. This module supports all depths, color types and Adam7 interlacing, and the
   first frame of an animation. Only the decompression is done by the browser. */

import { orient, orientationOf, xmpOrientation } from "./exif.js";

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
const [GRAY, RGB, PALETTE, GRAY_ALPHA, RGBA] = [0, 2, 3, 4, 6];
const SAMPLES = new Map([[GRAY, 1], [RGB, 3], [PALETTE, 1], [GRAY_ALPHA, 2], [RGBA, 4]]);
const DEPTHS = new Map([
    [GRAY, [1, 2, 4, 8, 16]], [RGB, [8, 16]], [PALETTE, [1, 2, 4, 8]], [GRAY_ALPHA, [8, 16]], [RGBA, [8, 16]],
]);

// The seven passes of Adam7: their start in each block of 8 x 8, and the distances of their pixels.
const PASSES = [
    { top: 0, left: 0, down: 8, across: 8 }, { top: 0, left: 4, down: 8, across: 8 },
    { top: 4, left: 0, down: 8, across: 4 }, { top: 0, left: 2, down: 4, across: 4 },
    { top: 2, left: 0, down: 4, across: 2 }, { top: 0, left: 1, down: 2, across: 2 },
    { top: 1, left: 0, down: 2, across: 1 },
];

export class PngError extends Error {}

export function isPng(bytes) {
    return SIGNATURE.every((value, place) => bytes[place] === value);
}

/* Whether this browser supports `decodePng`. */
export function canDecodePng() {
    return typeof DecompressionStream === "function";
}

/* Height and width in the header. */
export function pngSize(bytes) {
    if (bytes.length < 33 || text(bytes, 12, 16) !== "IHDR") {
        throw new PngError("a damaged PNG file: it has no header");
    }
    const view = viewOf(bytes);
    return { height: view.getUint32(20), width: view.getUint32(16) };
}

/* Bits per sample in the header. */
export function pngDepth(bytes) {
    return bytes[24];
}

/* Decode a PNG file, blend transparent pixels with white and rotate it upright: {height, width, channels, data}. For 16
   bits per channel, data is a Uint16Array, which resize.js scales by the range of the model. */
export async function decodePng(bytes) {
    const file = readChunks(bytes);
    const passes = file.isInterlaced ? PASSES : [{ top: 0, left: 0, down: 1, across: 1 }];
    const sizes = passes.map((pass) => sizeOf(file, pass));
    const total = sizes.reduce((sum, size) => sum + (size.width ? size.height * (1 + size.rowBytes) : 0), 0);
    const filtered = await inflate(file.compressed, total);
    const channels = file.colorType === GRAY || file.colorType === GRAY_ALPHA ? 1 : 3;
    const image = { height: file.height, width: file.width, channels, data: null };
    image.data = new (file.depth === 16 ? Uint16Array : Uint8Array)(image.height * image.width * channels);
    const place = placer(file, image);
    let at = 0;
    passes.forEach((pass, index) => {
        const { height, width, rowBytes } = sizes[index];
        let above = new Uint8Array(rowBytes);
        for (let y = 0; width && y < height; y++) {
            const row = filtered.subarray(at + 1, at + 1 + rowBytes);
            unfilter(filtered[at], row, above, file.pixelBytes);
            place(row, pass, y, width);
            above = row;
            at += 1 + rowBytes;
        }
    });
    return orient(image, file.orientation);
}

function sizeOf(file, pass) {
    const height = Math.max(0, Math.ceil((file.height - pass.top) / pass.down));
    const width = Math.max(0, Math.ceil((file.width - pass.left) / pass.across));
    return { height, width, rowBytes: Math.ceil((width * file.samples * file.depth) / 8) };
}

function viewOf(bytes) {
    return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

function text(bytes, begin, end) {
    return String.fromCharCode(...bytes.subarray(begin, end));
}

function readChunks(bytes) {
    const { height, width } = pngSize(bytes);
    const [depth, colorType, , , interlacing] = bytes.subarray(24, 29);
    if (!height || !width || !(DEPTHS.get(colorType) ?? []).includes(depth) || interlacing > 1) {
        throw new PngError("a damaged PNG file: its header is invalid");
    }
    const samples = SAMPLES.get(colorType);
    const file = {
        height, width, depth, colorType, samples,
        isInterlaced: interlacing === 1,
        pixelBytes: Math.max(1, (samples * depth) / 8),
        palette: new Uint8Array(0),
        transparency: null,
        compressed: [],
        orientation: 1,
    };
    const found = { exif: 1, xmp: 1 };
    const view = viewOf(bytes);
    for (let at = 8; at + 8 <= bytes.length;) {
        const length = view.getUint32(at);
        const kind = text(bytes, at + 4, at + 8);
        const content = bytes.subarray(at + 8, at + 8 + length);
        readChunk(file, kind, content, found);
        if (kind === "IEND") {
            break;
        }
        at += 12 + length;
    }
    if ([GRAY, RGB].includes(colorType) && (file.transparency?.length ?? Infinity) < 2 * samples) {
        throw new PngError("a damaged PNG file: its transparent color is truncated");
    }
    if (!file.compressed.length || (colorType === PALETTE && !file.palette.length)) {
        throw new PngError("a damaged PNG file: its image or its palette is missing");
    }
    file.orientation = found.exif === 1 ? found.xmp : found.exif;
    return file;
}

function readChunk(file, kind, content, found) {
    if (kind === "PLTE") {
        file.palette = content;
    } else if (kind === "tRNS") {
        file.transparency = content;
    } else if (kind === "IDAT") {
        file.compressed.push(content);
    } else if (kind === "eXIf") {
        found.exif = orientationOf(content);
    } else if (kind === "iTXt" && text(content, 0, 17) === "XML:com.adobe.xmp") {
        found.xmp = xmpOrientation(new TextDecoder().decode(content));
    }
}

/* The first `total` bytes of a zlib stream; the rest is not decompressed. */
async function inflate(compressed, total) {
    const result = new Uint8Array(total);
    const stream = new Blob(compressed).stream().pipeThrough(new DecompressionStream("deflate"));
    const reader = stream.getReader();
    let at = 0;
    try {
        while (at < total) {
            const { done, value } = await reader.read();
            if (done) {
                break;
            }
            result.set(value.subarray(0, total - at), at);
            at += value.length;
        }
    } catch (error) {
        throw new PngError("a damaged PNG file: its image cannot be decompressed", { cause: error });
    } finally {
        reader.cancel().catch(() => {}); // a failed stream rejects this
    }
    if (at < total) {
        throw new PngError("a truncated PNG file");
    }
    return result;
}

/* Undo the filter of a row in place; `above` is the previous row, `step` the number of bytes per pixel. */
function unfilter(kind, row, above, step) {
    const predict = [
        () => 0,
        (left) => left,
        (left, up) => up,
        (left, up) => (left + up) >> 1,
        paeth,
    ][kind];
    if (!predict) {
        throw new PngError("a damaged PNG file: a row has a filter that does not exist");
    }
    for (let at = 0; kind && at < row.length; at++) {
        const isFirst = at < step;
        row[at] += predict(isFirst ? 0 : row[at - step], above[at], isFirst ? 0 : above[at - step]);
    }
}

function paeth(left, up, corner) {
    const guess = left + up - corner;
    const [toLeft, toUp, toCorner] = [Math.abs(guess - left), Math.abs(guess - up), Math.abs(guess - corner)];
    if (toLeft <= toUp && toLeft <= toCorner) {
        return left;
    }
    return toUp <= toCorner ? up : corner;
}

/* A function that writes the pixels of a row of a pass to their positions in the image. */
function placer(file, image) {
    const colorOf = pixelReader(file);
    const { data, channels } = image;
    return (row, pass, y, width) => {
        const begin = (pass.top + y * pass.down) * image.width + pass.left;
        for (let x = 0; x < width; x++) {
            colorOf(row, x, data, (begin + x * pass.across) * channels);
        }
    };
}

/* A function (row, x, data, at) that writes the pixel x of a row as 1 or 3 values to data[at]. */
function pixelReader(file) {
    const sample = sampleReader(file.depth);
    if (file.colorType === PALETTE) {
        return paletteReader(file, sample);
    }
    const colors = file.colorType === RGB || file.colorType === RGBA ? 3 : 1;
    const scale = file.depth < 8 ? 255 / (2 ** file.depth - 1) : 1;
    const white = file.depth === 16 ? 65535 : 255;
    const hasAlpha = file.samples > colors;
    const hidden = transparentColor(file, colors);
    return (row, x, data, at) => {
        const first = x * file.samples;
        let alpha = hasAlpha ? sample(row, first + colors) : white;
        let isHidden = hidden !== null;
        for (let color = 0; color < colors; color++) {
            data[at + color] = sample(row, first + color) * scale;
            isHidden = isHidden && data[at + color] === hidden[color];
        }
        alpha = isHidden ? 0 : alpha;
        for (let color = 0; alpha !== white && color < colors; color++) {
            data[at + color] = onWhite(data[at + color], alpha, white);
        }
    };
}

/* A function (row, place) that returns an unscaled sample of a row. */
function sampleReader(depth) {
    if (depth >= 8) {
        return depth === 8 ? (row, place) => row[place] : (row, place) => 256 * row[2 * place] + row[2 * place + 1];
    }
    const most = 2 ** depth - 1;
    return (row, place) => {
        const bit = place * depth;
        return (row[bit >> 3] >> (8 - depth - (bit & 7))) & most;
    };
}

/* The transparent color of a file, if any. Like Pillow, compare the low byte for up to 8 bits, and ignore it for 1-bit
   gray. */
function transparentColor(file, colors) {
    const canHide = file.colorType === GRAY ? file.depth !== 1 : file.colorType === RGB;
    if (file.transparency === null || !canHide) {
        return null;
    }
    const sample = sampleReader(16);
    return Array.from({ length: colors }, (_, color) => {
        const value = sample(file.transparency, color);
        return file.depth === 16 ? value : value & 255;
    });
}

function paletteReader(file, index) {
    const colors = new Uint8Array(3 * 256);
    colors.set(file.palette.subarray(0, 3 * 256));
    const alphas = new Uint8Array(256).fill(255);
    alphas.set((file.transparency ?? new Uint8Array(0)).subarray(0, 256));
    const shown = colors.map((value, place) => onWhite(value, alphas[Math.floor(place / 3)], 255));
    return (row, x, data, at) => {
        const from = 3 * index(row, x);
        data[at] = shown[from];
        data[at + 1] = shown[from + 1];
        data[at + 2] = shown[from + 2];
    };
}

function onWhite(value, alpha, white) {
    return Math.floor((value * alpha + white * (white - alpha) + (white - 1) / 2) / white);
}
