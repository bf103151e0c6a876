/* Decode an image file, by the rules of thaw's data/decode.py.

   PNG is decoded here, byte for byte. The browser decodes all other formats: the first frame, without color profile,
   rotated upright, transparent pixels blended with white. Lossy formats may differ from other decoders by a few levels. */

import { canDecodePng, decodePng, isPng, PngError, pngDepth, pngSize } from "./png.js";

const MAX_SIDE = 32768;
const MAX_PIXELS = 89478485;
const MAX_FILE_BYTES = 2 ** 28;

// The canvas of a phone is limited to about 16 million pixels, so photos are read in strips.
const STRIP_PIXELS = 2 ** 22;

/* An error for the user about a file. */
export class ImageError extends Error {}

/* The image of a File or Blob: {height, width, channels, data}, channels 1 or 3. */
export async function decodeImage(file) {
    if (!file.size) {
        throw new ImageError("an empty file");
    }
    if (file.size > MAX_FILE_BYTES) {
        throw new ImageError(`too large: limit ${MAX_FILE_BYTES / 2 ** 20} MiB`);
    }
    let bytes = null;
    try {
        bytes = new Uint8Array(await file.arrayBuffer());
    } catch (error) {
        throw new ImageError("the file cannot be read", { cause: error });
    }
    if (!isPng(bytes)) {
        return readOther(file);
    }
    if (!canDecodePng() && pngDepth(bytes) === 16) {
        throw new ImageError("16 bits per channel, which this browser does not support: use a newer one");
    }
    return canDecodePng() ? readPng(bytes) : readOther(file);
}

async function readPng(bytes) {
    try {
        checkSize(pngSize(bytes));
        return await decodePng(bytes);
    } catch (error) {
        if (error instanceof PngError) {
            throw new ImageError(error.message, { cause: error });
        }
        throw error instanceof RangeError ? new ImageError("too large for the memory of this browser") : error;
    }
}

async function readOther(file) {
    let bitmap = null;
    try {
        bitmap = await createImageBitmap(file, { colorSpaceConversion: "none", imageOrientation: "from-image" });
    } catch (error) {
        throw new ImageError("not an image, or in a format that this browser cannot read", { cause: error });
    }
    try {
        checkSize(bitmap);
        return pixelsOf(bitmap);
    } finally {
        bitmap.close();
    }
}

function checkSize({ height, width }) {
    if (height * width > MAX_PIXELS || Math.max(height, width) > MAX_SIDE) {
        const limits = `limit ${MAX_PIXELS.toLocaleString("en")} pixels and sides of ${MAX_SIDE.toLocaleString("en")}`;
        throw new ImageError(`too large: ${width} × ${height} pixels (${limits})`);
    }
}

function pixelsOf(bitmap) {
    const { height, width } = bitmap;
    const rows = Math.min(height, Math.max(1, Math.floor(STRIP_PIXELS / width)));
    const canvas = document.createElement("canvas");
    canvas.width = width;
    canvas.height = rows;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    const data = new Uint8Array(height * width * 3);
    for (let top = 0, at = 0; top < height; top += rows) {
        context.fillStyle = "white";
        context.fillRect(0, 0, width, rows);
        context.drawImage(bitmap, 0, -top);
        const strip = context.getImageData(0, 0, width, Math.min(rows, height - top)).data;
        for (let from = 0; from < strip.length; from += 4) {
            data[at++] = strip[from];
            data[at++] = strip[from + 1];
            data[at++] = strip[from + 2];
        }
    }
    return { height, width, channels: 3, data };
}
