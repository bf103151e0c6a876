/* Render a drawing without a canvas, so that the result is the same in every browser.

   A drawing is a list of strokes, a stroke a list of points [x, y] in units of the frame: 0 to 1 from left to right and
   from top to bottom. */

// Pen width relative to the frame, as in MNIST: 2.5 of 28 pixels.
export const PEN_WIDTH = 2.5 / 28;

// The digits of MNIST fit a box of 20 of 28 pixels.
const BOX = 20 / 28;

// Pixels of the rendered image per pixel of the model input, for smooth edges after resizing.
const OVERSAMPLING = 8;

/* Move and scale strokes like the digits of MNIST: the longer side has the length of the box, the center of mass is the
   center of the frame. `aspect` is width / height of the frame. */
export function centered(strokes, aspect = 1) {
    const points = strokes.flat();
    if (!points.length) {
        return strokes;
    }
    const [xs, ys] = [points.map((point) => point[0] * aspect), points.map((point) => point[1])];
    const [left, right, top, bottom] = [Math.min(...xs), Math.max(...xs), Math.min(...ys), Math.max(...ys)];
    const longest = Math.max(right - left, bottom - top);
    // The box includes the pen width. A dot is not scaled.
    const room = Math.min(1, aspect) * (BOX - PEN_WIDTH);
    const scale = longest > 0 ? Math.min(room / longest, 8) : 1;
    const [x, y] = centerOfInk(strokes, aspect);
    return strokes.map((stroke) =>
        stroke.map((point) => [
            ((point[0] * aspect - x) * scale) / aspect + 0.5,
            (point[1] - y) * scale + 0.5,
        ]),
    );
}

/* The center of mass of the strokes. */
function centerOfInk(strokes, aspect) {
    let [weight, sumX, sumY] = [0, 0, 0];
    for (const stroke of strokes) {
        for (let place = 0; place < stroke.length; place++) {
            const [x, y] = stroke[place];
            const [nextX, nextY] = stroke[place + 1] ?? [x, y];
            // A dot has no length, so each point has a small weight.
            const length = Math.hypot((nextX - x) * aspect, nextY - y) + 1e-6;
            weight += length;
            sumX += (length * aspect * (x + nextX)) / 2;
            sumY += (length * (y + nextY)) / 2;
        }
    }
    return [sumX / weight, sumY / weight];
}

/* A gray image of the strokes for a model input: bright on dark, or dark on bright. */
export function rendered(strokes, inputSpec, isBright) {
    const height = inputSpec.height * OVERSAMPLING;
    const width = inputSpec.width * OVERSAMPLING;
    const data = new Uint8Array(height * width);
    const radius = (PEN_WIDTH * Math.min(height, width)) / 2;
    for (const stroke of strokes) {
        const points = stroke.map(([x, y]) => [x * width, y * height]);
        points.forEach((point, place) => {
            if (place || points.length === 1) {
                drawSegment(data, height, width, points[Math.max(0, place - 1)], point, radius);
            }
        });
    }
    return { height, width, channels: 1, data: isBright ? data : data.map((value) => 255 - value) };
}

/* Draw a line with round ends and smooth edges. */
function drawSegment(data, height, width, [fromX, fromY], [toX, toY], radius) {
    const [alongX, alongY] = [toX - fromX, toY - fromY];
    const square = alongX * alongX + alongY * alongY;
    const top = Math.max(0, Math.floor(Math.min(fromY, toY) - radius - 1));
    const bottom = Math.min(height - 1, Math.ceil(Math.max(fromY, toY) + radius + 1));
    const left = Math.max(0, Math.floor(Math.min(fromX, toX) - radius - 1));
    const right = Math.min(width - 1, Math.ceil(Math.max(fromX, toX) + radius + 1));
    for (let row = top; row <= bottom; row++) {
        for (let column = left; column <= right; column++) {
            const [x, y] = [column + 0.5 - fromX, row + 0.5 - fromY];
            const share = square ? Math.min(1, Math.max(0, (x * alongX + y * alongY) / square)) : 0;
            const distance = Math.hypot(x - share * alongX, y - share * alongY);
            const value = 255 * Math.min(1, Math.max(0, radius + 0.5 - distance));
            const at = row * width + column;
            data[at] = Math.max(data[at], value);
        }
    }
}
