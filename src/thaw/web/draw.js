/* The drawing pad, for finger, mouse, pen or keyboard. */

import { PEN_WIDTH } from "./strokes.js";

const PIXELS = 560; // of the longer side
const KEY_STEP = 1 / 28;
const MOVES = new Map([["ArrowLeft", [-1, 0]], ["ArrowRight", [1, 0]], ["ArrowUp", [0, -1]], ["ArrowDown", [0, 1]]]);

export class Pad {
    /* On a canvas, with the aspect ratio of the model input; `changed` is called after each change, and `announce` with
       a description of keyboard actions, for screen readers. */
    constructor(canvas, inputSpec, isBright, { changed, announce }) {
        this.canvas = canvas;
        this.isBright = isBright;
        this.changed = changed;
        this.announce = announce;
        this.strokes = [];
        this.pen = [0.5, 0.5];
        this.isPenDown = false;
        const scale = PIXELS / Math.max(inputSpec.height, inputSpec.width);
        canvas.height = Math.round(inputSpec.height * scale);
        canvas.width = Math.round(inputSpec.width * scale);
        canvas.addEventListener("pointerdown", (event) => this.begin(event));
        canvas.addEventListener("pointermove", (event) => this.move(event));
        canvas.addEventListener("pointerup", (event) => this.end(event));
        canvas.addEventListener("pointercancel", (event) => this.end(event));
        canvas.addEventListener("keydown", (event) => this.key(event));
        canvas.addEventListener("focus", () => this.paint());
        canvas.addEventListener("blur", () => this.paint());
        this.pointer = null;
        this.paint();
    }

    replace(strokes) {
        this.strokes = strokes;
        this.isPenDown = false;
        this.update();
    }

    undo() {
        this.replace(this.strokes.slice(0, -1));
    }

    update() {
        this.paint();
        this.changed();
    }

    begin(event) {
        if (this.pointer !== null || event.button !== 0) {
            return; // a second finger, or another button
        }
        event.preventDefault(); // no selection, no scrolling
        this.canvas.focus({ focusVisible: false });
        this.pointer = event.pointerId;
        this.canvas.setPointerCapture(event.pointerId);
        this.isPenDown = false;
        this.strokes.push([this.place(event)]);
        this.update();
    }

    move(event) {
        if (event.pointerId !== this.pointer) {
            return;
        }
        const events = event.getCoalescedEvents?.() ?? [];
        this.strokes.at(-1)?.push(...(events.length ? events : [event]).map((each) => this.place(each)));
        this.update();
    }

    end(event) {
        if (event.pointerId === this.pointer) {
            this.pointer = null;
        }
    }

    /* The position of an event in the frame. */
    place(event) {
        const frame = this.canvas.getBoundingClientRect();
        return [(event.clientX - frame.left) / frame.width, (event.clientY - frame.top) / frame.height];
    }

    key(event) {
        const move = MOVES.get(event.key);
        if (move && !event.ctrlKey && !event.altKey && !event.metaKey) {
            this.step(move, event.shiftKey ? 4 * KEY_STEP : KEY_STEP);
        } else if (event.key === " ") {
            this.setPen(!this.isPenDown);
        } else if (event.key === "Delete" || event.key === "Backspace") {
            this.replace([]);
            this.announce("Cleared.");
        } else if (event.key.toLowerCase() === "z" && !event.altKey) {
            this.undo();
            this.announce("Last stroke undone.");
        } else {
            return;
        }
        event.preventDefault();
    }

    step([across, down], length) {
        const inside = (value) => Math.min(1, Math.max(0, value));
        this.pen = [inside(this.pen[0] + across * length), inside(this.pen[1] + down * length)];
        if (this.isPenDown) {
            this.strokes.at(-1).push([...this.pen]);
            this.changed();
        }
        this.paint();
    }

    setPen(isDown) {
        this.isPenDown = isDown;
        this.announce(isDown ? "Pen down." : "Pen up.");
        if (isDown) {
            this.strokes.push([[...this.pen]]);
            this.changed();
        }
        this.paint();
    }

    paint() {
        const { canvas, strokes } = this;
        const context = canvas.getContext("2d");
        const [paper, ink] = this.isBright ? ["#000000", "#ffffff"] : ["#ffffff", "#000000"];
        context.fillStyle = paper;
        context.fillRect(0, 0, canvas.width, canvas.height);
        context.strokeStyle = ink;
        context.lineWidth = PEN_WIDTH * Math.min(canvas.width, canvas.height);
        context.lineCap = context.lineJoin = "round";
        for (const stroke of strokes) {
            context.beginPath();
            stroke.forEach(([x, y], place) => {
                context[place ? "lineTo" : "moveTo"](x * canvas.width, y * canvas.height);
            });
            if (stroke.length === 1) {
                context.lineTo(stroke[0][0] * canvas.width, stroke[0][1] * canvas.height);
            }
            context.stroke();
        }
        if (canvas.matches(":focus-visible")) {
            this.paintPen(context, ink);
        }
    }

    paintPen(context, ink) {
        const { canvas } = this;
        const [x, y] = [this.pen[0] * canvas.width, this.pen[1] * canvas.height];
        context.lineWidth = 3;
        context.strokeStyle = this.isPenDown ? "#e06c00" : ink;
        context.beginPath();
        context.arc(x, y, canvas.width / 28, 0, 2 * Math.PI);
        context.moveTo(x - canvas.width / 14, y);
        context.lineTo(x + canvas.width / 14, y);
        context.moveTo(x, y - canvas.width / 14);
        context.lineTo(x, y + canvas.width / 14);
        context.stroke();
    }
}
