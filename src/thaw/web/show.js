/* Shared helpers for the page. */

import { printable } from "./csv.js";

/* An element by its id. */
export function element(id) {
    return document.getElementById(id);
}

/* A new element with text and children. */
export function made(kind, { text, className, children = [] } = {}) {
    const node = document.createElement(kind);
    if (text !== undefined) {
        node.textContent = printable(text);
    }
    if (className) {
        node.className = className;
    }
    node.append(...children);
    return node;
}

/* Draw an image {height, width, channels, data} on a canvas, one pixel per pixel; the style enlarges it. */
export function paintImage(canvas, image) {
    canvas.height = image.height;
    canvas.width = image.width;
    const pixels = new ImageData(image.width, image.height);
    for (let pixel = 0; pixel < image.height * image.width; pixel++) {
        for (let channel = 0; channel < 3; channel++) {
            pixels.data[4 * pixel + channel] = image.data[image.channels === 1 ? pixel : 3 * pixel + channel];
        }
        pixels.data[4 * pixel + 3] = 255;
    }
    canvas.getContext("2d").putImageData(pixels, 0, 0);
}

export function percent(probability) {
    return `${(100 * probability).toFixed(2)} %`;
}

export function count(number) {
    return number.toLocaleString("en");
}

export function indexOfLargest(values) {
    return values.reduce((best, value, index) => (value > values[best] ? index : best), 0);
}
