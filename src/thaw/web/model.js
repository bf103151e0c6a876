/* The model: an ONNX file, run by onnxruntime-web in this browser.

   The network takes raw bytes and gives probabilities; scaling and offset are inside. */

import * as runtime from "./ort.wasm.min.js";

// One thread: networks this small are done before a second would have woken up.
runtime.env.wasm.numThreads = 1;
runtime.env.wasm.wasmPaths = { mjs: new URL("./ort-wasm-simd-threaded.js", import.meta.url).href };

let wasmBinary = null;

export async function fetched(name) {
    const response = await fetch(new URL(name, import.meta.url));
    if (!response.ok) {
        throw new Error(`${name} could not be loaded: the server answered ${response.status}`);
    }
    return response.arrayBuffer();
}

export class Model {
    constructor(session, card, precision) {
        this.session = session;
        this.input = card.input;
        this.precision = precision;
        this.turn = Promise.resolve();
    }

    /* The model of that precision, warmed up, so that the first answer is as quick as the next. */
    static async load(card, precision) {
        // Given as bytes it works whatever type the web server says the file has.
        wasmBinary ??= await fetched("ort-wasm-simd-threaded.wasm");
        runtime.env.wasm.wasmBinary = wasmBinary;
        const file = new Uint8Array(await fetched(card.models[precision].file));
        const session = await runtime.InferenceSession.create(file, { executionProviders: ["wasm"] });
        const model = new Model(session, card, precision);
        const { height, width, channels } = card.input;
        await model.predict({ height, width, channels, data: new Uint8Array(height * width * channels) });
        return model;
    }

    /* Probabilities (a Float32Array of K classes) for an image of the model's input size, and how long that took. */
    predict(image) {
        // A session computes one at a time.
        const answer = this.turn.then(() => this.run(image));
        this.turn = answer.catch(() => {});
        return answer;
    }

    async run(image) {
        const { height, width, channels } = this.input;
        const begin = performance.now();
        const pixels = new runtime.Tensor("uint8", image.data, [1, height, width, channels]);
        const results = await this.session.run({ [this.session.inputNames[0]]: pixels });
        const probabilities = results[this.session.outputNames[0]].data;
        // The largest of what is not a number would be the first class.
        if (!probabilities.every(Number.isFinite)) {
            throw new Error("the network computes NaN or infinity, of which no class can be made");
        }
        return { probabilities, milliseconds: performance.now() - begin };
    }

    release() {
        return this.turn.then(() => this.session.release());
    }
}
