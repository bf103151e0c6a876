/* The page: classifies drawings and images, and shows the predictions. */

import { Batch } from "./batch.js";
import { printable } from "./csv.js";
import { decodeImage, ImageError } from "./decode.js";
import { Pad } from "./draw.js";
import { chosenFiles, droppedFiles } from "./files.js";
import { depthWarning, resize } from "./resize.js";
import { SAMPLES } from "./samples.js";
import { count, element, indexOfLargest, made, paintImage, percent } from "./show.js";
import { centered, rendered } from "./strokes.js";

const SPEAK_MILLISECONDS = 600;
const MANY_CLASSES = 20;

const PRECISION_NAMES = { float: "float32", int8: "int8" };

class Page {
    constructor(card, Model) {
        this.card = card;
        this.Model = Model;
        this.model = null;
        this.input = null; // {image, source}: the current image, for a new prediction when the model changes
        this.asked = 0;
    }

    async start() {
        this.showCard();
        this.showClasses();
        await this.load(Object.keys(this.card.models)[0]);
        this.batch = new Batch(this.card, () => this.model);
        this.offerPrecisions();
        this.takeImages();
        element("main").hidden = false;
        element("loading").remove();
        if (this.card.drawing) {
            this.takeDrawings();
        }
    }

    async load(precision) {
        const last = this.model;
        this.model = await this.Model.load(this.card, precision);
        await last?.release();
    }

    /* If the model has both precisions, offer a choice. */
    offerPrecisions() {
        const precisions = Object.keys(this.card.models);
        const group = element("precisions");
        group.hidden = precisions.length < 2;
        for (const precision of precisions) {
            const choice = made("input");
            Object.assign(choice, { type: "radio", name: "precision", value: precision });
            choice.checked = precision === this.model.precision;
            choice.addEventListener("change", () => this.switchTo(precision));
            group.append(made("label", { className: "check", children: [choice, PRECISION_NAMES[precision]] }));
        }
    }

    async switchTo(precision) {
        element("precisions").disabled = true;
        try {
            await this.load(precision);
            await this.ask();
            await this.batch.rerun();
        } finally {
            element("precisions").disabled = false;
        }
    }

    takeDrawings() {
        const { input, drawing } = this.card;
        const pad = new Pad(element("pad"), input, drawing.isBright, {
            changed: () => this.drawn(pad),
            announce: (text) => { element("pad-state").textContent = text; },
        });
        element("drawing").hidden = false;
        element("clear").addEventListener("click", () => pad.replace([]));
        element("undo").addEventListener("click", () => pad.undo());
        element("center").addEventListener("change", () => this.drawn(pad));
        const known = this.card.classes.filter((name) => SAMPLES.has(name));
        element("samples").hidden = !known.length;
        for (const name of known) {
            const button = made("button", { text: name });
            button.type = "button";
            button.setAttribute("aria-label", `Draw a ${name}`);
            button.addEventListener("click", () => pad.replace(structuredClone(SAMPLES.get(name))));
            element("samples").append(button);
        }
    }

    drawn(pad) {
        if (!pad.strokes.length) {
            this.showNothing();
            return;
        }
        const { input, drawing } = this.card;
        const strokes = element("center").checked ? centered(pad.strokes, input.width / input.height) : pad.strokes;
        this.answer(resize(rendered(strokes, input, drawing.isBright), input), "Your drawing");
    }

    takeImages() {
        for (const id of ["choose", "photograph", "choose-many", "choose-folder"]) {
            element(id).addEventListener("change", (event) => {
                const files = chosenFiles(event.target);
                event.target.value = ""; // so that the same file can be chosen again
                const isFolder = id === "choose-folder";
                this.take(files, { isFolder, isMany: isFolder || id === "choose-many" });
            });
        }
        document.addEventListener("paste", (event) => {
            const files = Array.from(event.clipboardData?.files ?? [], (file) => ({ name: file.name, file }));
            if (files.length) {
                event.preventDefault();
                this.take(files, {});
            } else if (event.clipboardData?.types.length) {
                this.trouble("The clipboard does not contain an image.");
            }
        });
        this.takeDrops();
    }

    takeDrops() {
        const drag = (isOver) => document.body.classList.toggle("dragging", isOver);
        document.addEventListener("dragover", (event) => {
            event.preventDefault();
            drag(true);
        });
        document.addEventListener("dragleave", (event) => drag(event.relatedTarget !== null));
        document.addEventListener("drop", async (event) => {
            event.preventDefault();
            drag(false);
            const { files, hasFolder } = await droppedFiles(event.dataTransfer);
            if (!files.length && !hasFolder) {
                this.trouble("No file was dropped: save the image first, or copy and paste it.");
                return;
            }
            this.take(files, { isFolder: hasFolder, isMany: hasFolder });
        });
    }

    /* A single file is classified at once, several are a batch. */
    async take(files, { isFolder = false, isMany = false }) {
        this.trouble("");
        if (isMany || files.length > 1) {
            element("batch").scrollIntoView({ block: "start" });
            await this.batch.run(files, { isFolder });
        } else if (files.length) {
            await this.takeOne(files[0]);
        }
    }

    async takeOne({ name, file }) {
        this.asked += 1;
        const turn = this.asked;
        try {
            const image = await decodeImage(file);
            if (turn === this.asked) { // no newer image
                const source = `${name}, ${image.width} × ${image.height} pixels`;
                const warning = depthWarning(image, this.card.input);
                await this.answer(resize(image, this.card.input), source);
                this.trouble(warning && `${name}: ${warning}.`);
            }
        } catch (error) {
            if (!(error instanceof ImageError)) {
                throw error;
            }
            this.showNothing();
            this.trouble(`${name}: ${error.message}.`);
        }
    }

    /* Show an input and its prediction. */
    async answer(image, source) {
        this.trouble("");
        this.input = { image, source };
        await this.ask();
    }

    async ask() {
        this.asked += 1;
        const [turn, input] = [this.asked, this.input];
        if (input === null) {
            return;
        }
        const { probabilities, milliseconds } = await this.model.predict(input.image);
        if (turn !== this.asked) {
            return; // there is a newer input
        }
        paintImage(element("seen"), input.image);
        element("source").textContent = printable(input.source);
        const precision = PRECISION_NAMES[this.model.precision];
        element("latency").textContent = `${duration(milliseconds)} inference time, ${precision}`;
        this.showProbabilities(probabilities);
    }

    showNothing() {
        this.asked += 1;
        this.input = null;
        const canvas = element("seen");
        canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
        element("best").textContent = "–";
        element("source").textContent = "No image yet.";
        element("latency").textContent = "";
        this.speak("");
        for (const row of this.rows) {
            row.show(null, false);
        }
    }

    showClasses() {
        const { input, classes } = this.card;
        const colors = input.channels === 1 ? "gray" : "color";
        element("seen-size").textContent = `${input.width} × ${input.height} pixels, ${colors}`;
        element("seen").height = input.height;
        element("seen").width = input.width;
        this.rows = classes.map(probabilityRow);
        element("probabilities").replaceChildren(...this.rows.map((row) => row.node));
    }

    showProbabilities(probabilities) {
        const best = indexOfLargest(probabilities);
        const label = this.card.classes[best];
        const share = made("small", { text: percent(probabilities[best]) });
        element("best").replaceChildren(printable(label), share);
        this.rows.forEach((row, index) => row.show(probabilities[index], index === best));
        if (this.rows.length > MANY_CLASSES) {
            const order = [...this.rows].sort((one, other) => other.probability - one.probability);
            element("probabilities").replaceChildren(...order.map((row) => row.node));
        }
        this.speak(`${label}, ${percent(probabilities[best])}`);
    }

    /* For screen readers: after the prediction has settled, not at every point of a stroke. */
    speak(text) {
        clearTimeout(this.speaking);
        this.speaking = setTimeout(() => { element("spoken").textContent = printable(text); }, SPEAK_MILLISECONDS);
    }

    trouble(text) {
        element("trouble").textContent = printable(text);
    }

    showCard() {
        const { card } = this;
        const name = printable(card.name);
        document.title = `${name} – thaw`;
        element("name").textContent = name;
        const facts = [
            ["Parameters", card.parameters === undefined ? undefined : count(card.parameters)],
            ["Multiply-accumulates", card.macs === undefined ? undefined : `${count(card.macs)} per image`],
            ...Object.entries(card.models).map(([precision, { bytes }]) => [
                `Size in ${PRECISION_NAMES[precision]}`, `${count(bytes)} bytes (ONNX)`,
            ]),
            ["Test accuracy", percentOrNothing(card["test accuracy"])],
            ["Test accuracy in int8", percentOrNothing(card["test accuracy in int8"])],
            ["Trained on", card.dataset],
            ["Input", inputWords(card.input)],
            ["Classes", `${count(card.classes.length)}: ${shortened(card.classes)}`],
            ["Created by", card.made_by],
        ];
        for (const [term, value] of facts.filter(([, each]) => each !== undefined)) {
            element("card").append(made("dt", { text: term }), made("dd", { text: value }));
        }
    }
}

function probabilityRow(name) {
    const fill = made("i");
    const value = made("data", { text: "" });
    const bar = made("div", { className: "bar", children: [fill] });
    const node = made("tr", { children: [made("th", { text: name }), made("td", { children: [bar] }), made("td", { children: [value] })] });
    node.firstChild.scope = "row";
    const row = { node, probability: 0 };
    row.show = (probability, isBest) => {
        row.probability = probability ?? 0;
        fill.style.width = `${100 * row.probability}%`;
        value.value = probability === null ? "" : String(probability);
        value.textContent = probability === null ? "" : percent(probability);
        node.classList.toggle("best", isBest);
    };
    return row;
}

function inputWords({ height, width, channels, fit, range }) {
    const colors = channels === 1 ? "gray" : "RGB";
    const how = fit === "crop" ? "cropped to that aspect ratio and resized" : "stretched to that size";
    const depth = range ? `; 16-bit values ${count(range[0])} to ${count(range[1])} are scaled to 0 to 255` : "";
    return `${width} × ${height} pixels, ${colors}; other images are ${how}${depth}`;
}

function shortened(classes) {
    const shown = classes.slice(0, 50).join(", ");
    return classes.length > 50 ? `${shown}, …` : shown;
}

function percentOrNothing(share) {
    return share === undefined ? undefined : percent(share);
}

/* Browsers round their clock, by up to a millisecond. */
function duration(milliseconds) {
    return milliseconds < 0.05 ? "less than 0.1 ms" : `${milliseconds.toFixed(milliseconds < 10 ? 2 : 0)} ms`;
}

function showProblem(error) {
    element("loading")?.remove();
    element("problem").textContent = error instanceof Error ? error.message : String(error);
}

async function begin() {
    if (typeof WebAssembly !== "object") {
        throw new Error("WebAssembly is missing or disabled in this browser (some privacy modes disable it): " +
            "the model needs it.");
    }
    // Imported here, so that the page can show an error if the runtime does not start.
    const { fetched, Model } = await import("./model.js");
    const card = JSON.parse(new TextDecoder().decode(await fetched("model.json")));
    await new Page(card, Model).start();
}

addEventListener("unhandledrejection", (event) => showProblem(event.reason));
begin().catch(showProblem);
