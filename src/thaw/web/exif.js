/* The EXIF orientation, 1 to 8, as in data/decode.py; 1 (upright) if it is missing or cannot be read. */

const ORIENTATION_TAG = 0x0112;
const [BYTE_TYPE, SHORT_TYPE, LONG_TYPE] = [1, 3, 4];

/* The orientation in an EXIF block: a TIFF header and its first directory. */
export function orientationOf(exif) {
    try {
        return readOrientation(exif);
    } catch (error) {
        if (error instanceof RangeError) {
            return 1; // truncated
        }
        throw error;
    }
}

function readOrientation(exif) {
    const prefix = "Exif\0\0";
    const hasPrefix = String.fromCharCode(...exif.subarray(0, prefix.length)) === prefix;
    const bytes = hasPrefix ? exif.subarray(prefix.length) : exif;
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    const order = String.fromCharCode(view.getUint8(0), view.getUint8(1));
    if (order !== "II" && order !== "MM") {
        return 1;
    }
    const little = order === "II";
    const directory = view.getUint32(4, little);
    const entries = view.getUint16(directory, little);
    for (let entry = 0; entry < entries; entry++) {
        const at = directory + 2 + 12 * entry;
        if (view.getUint16(at, little) === ORIENTATION_TAG) {
            return checked(valueAt(view, at, little));
        }
    }
    return 1;
}

function valueAt(view, at, little) {
    const type = view.getUint16(at + 2, little);
    if (view.getUint32(at + 4, little) !== 1) {
        return 1;
    }
    if (type === SHORT_TYPE) {
        return view.getUint16(at + 8, little);
    }
    return type === LONG_TYPE ? view.getUint32(at + 8, little) : type === BYTE_TYPE ? view.getUint8(at + 8) : 1;
}

/* The orientation in an XMP packet, which some cameras and editors write instead. */
export function xmpOrientation(text) {
    const found = /tiff:Orientation(?:="|>)([0-9])/.exec(text);
    return found ? checked(Number(found[1])) : 1;
}

function checked(value) {
    return value >= 1 && value <= 8 ? value : 1;
}

/* Rotate an image upright; orientations 5 to 8 swap height and width. */
export function orient(image, orientation) {
    if (orientation === 1) {
        return image;
    }
    const isTransposed = orientation >= 5;
    const flipsRows = [3, 4, 7, 8].includes(orientation);
    const flipsColumns = [2, 3, 6, 7].includes(orientation);
    const { channels } = image;
    const height = isTransposed ? image.width : image.height;
    const width = isTransposed ? image.height : image.width;
    const data = new image.data.constructor(image.data.length);
    for (let y = 0, at = 0; y < height; y++) {
        const row = flipsRows ? height - 1 - y : y;
        for (let x = 0; x < width; x++) {
            const column = flipsColumns ? width - 1 - x : x;
            const from = (isTransposed ? column * image.width + row : row * image.width + column) * channels;
            for (let channel = 0; channel < channels; channel++) {
                data[at++] = image.data[from + channel];
            }
        }
    }
    return { height, width, channels, data };
}
