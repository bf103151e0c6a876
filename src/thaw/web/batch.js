/* Many images: a grid sorted by confidence, and a CSV. Only the model input of each image stays in memory. */

import { csvText, printable } from "./csv.js";
import { decodeImage, ImageError } from "./decode.js";
import { looksLikeImage } from "./files.js";
import { depthWarning, resize } from "./resize.js";
import { count, element, indexOfLargest, made, paintImage, percent } from "./show.js";

const SHOWN_AT_ONCE = 200;
const REPORT_MILLISECONDS = 250;

const ORDERS = {
    most: (one, other) => other.probability - one.probability,
    least: (one, other) => one.probability - other.probability,
    name: (one, other) => one.name.localeCompare(other.name, "en", { numeric: true }),
};

export class Batch {
    /* `getModel` returns the current model. */
    constructor(card, getModel) {
        this.card = card;
        this.getModel = getModel;
        this.forget();
        element("order").addEventListener("change", () => this.show());
        element("save").addEventListener("click", () => this.save());
        element("forget").addEventListener("click", () => this.forget());
        element("stop").addEventListener("click", () => { this.job = null; });
        element("more").addEventListener("click", () => this.showMore());
    }

    forget() {
        this.job = null;
        this.entries = [];
        this.unreadable = [];
        this.ignored = 0;
        this.doubtful = 0;
        this.report("");
        this.show();
    }

    /* Classify files [{name, file}], only the images of a folder, and replace the last batch. */
    async run(files, { isFolder }) {
        this.forget();
        const images = isFolder ? files.filter(looksLikeImage) : files;
        this.ignored = files.length - images.length;
        // Another batch may start, with its own lists, before this one has ended.
        const { entries, unreadable } = this;
        await this.work(images, async ({ name, file }) => {
            try {
                const decoded = await decodeImage(file);
                this.doubtful += depthWarning(decoded, this.card.input) ? 1 : 0;
                const image = resize(decoded, this.card.input);
                entries.push({ name, image, ...(await this.answer(image)) });
            } catch (error) {
                if (!(error instanceof ImageError)) {
                    throw error;
                }
                unreadable.push({ name, reason: error.message });
            }
        });
    }

    /* Classify the images again after a change of the model. */
    async rerun() {
        if (this.entries.length) {
            await this.work(this.entries, async (entry) => Object.assign(entry, await this.answer(entry.image)));
        }
    }

    async answer(image) {
        const { probabilities } = await this.getModel().predict(image);
        const best = indexOfLargest(probabilities);
        return { label: this.card.classes[best], probability: probabilities[best], probabilities: probabilities.slice() };
    }

    /* Call `done` for each thing and show the progress, until another job or Stop ends it. */
    async work(things, done) {
        const job = {};
        this.job = job;
        element("stop").hidden = false;
        element("precisions").disabled = true; // one model for all of them
        let [shown, finished] = [performance.now(), 0];
        for (const thing of things) {
            await done(thing);
            finished += 1;
            if (performance.now() - shown > REPORT_MILLISECONDS) {
                this.report(`${count(finished)} of ${count(things.length)} images …`);
                await new Promise((resolve) => { setTimeout(resolve); }); // let the page respond
                shown = performance.now();
            }
            if (this.job !== job) {
                break;
            }
        }
        if (this.job === job || this.job === null) {
            this.job = null;
            this.finish(finished < things.length);
        }
    }

    finish(wasStopped) {
        element("stop").hidden = true;
        element("precisions").disabled = false;
        const parts = [`${count(this.entries.length)} ${this.entries.length === 1 ? "image" : "images"}`];
        if (this.unreadable.length) {
            parts.push(`${count(this.unreadable.length)} could not be read`);
        }
        if (this.doubtful) {
            parts.push(`${count(this.doubtful)} with another depth or range than the training images`);
        }
        if (this.ignored) {
            parts.push(`${count(this.ignored)} other ${this.ignored === 1 ? "file" : "files"} ignored`);
        }
        this.report(`${parts.join(", ")}${wasStopped ? "; stopped" : ""}.`);
        this.show();
    }

    report(text) {
        element("batch-state").textContent = text;
    }

    show() {
        element("stop").hidden = this.job === null;
        element("batch-result").hidden = !this.entries.length;
        this.sorted = [...this.entries].sort(ORDERS[element("order").value]);
        element("grid").replaceChildren();
        this.showMore();
        const unreadable = element("unreadable");
        unreadable.hidden = !this.unreadable.length;
        unreadable.querySelector("summary").textContent = `Unreadable files (${count(this.unreadable.length)})`;
        const lines = this.unreadable.map(({ name, reason }) => made("li", { text: `${name}: ${reason}` }));
        unreadable.querySelector("ul").replaceChildren(...lines);
    }

    showMore() {
        const grid = element("grid");
        const next = this.sorted.slice(grid.childElementCount, grid.childElementCount + SHOWN_AT_ONCE);
        grid.append(...next.map(picture));
        element("more").hidden = grid.childElementCount >= this.sorted.length;
    }

    save() {
        const text = csvText(this.card.classes, this.sorted);
        const link = made("a");
        link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
        link.download = "predictions.csv";
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 60000);
    }
}

function picture({ name, image, label, probability }) {
    const canvas = made("canvas", { className: "sharp" });
    canvas.setAttribute("role", "presentation");
    paintImage(canvas, image);
    const number = made("span", { text: percent(probability), className: "number" });
    const shown = made("span", { text: name, className: "name" });
    shown.title = printable(name);
    return made("li", { children: [canvas, made("p", { children: [printable(label), " ", number] }), shown] });
}
