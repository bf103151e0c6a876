/* The model: an ONNX file, run by onnxruntime-web in this browser.

   The network maps raw bytes to probabilities; it includes scaling and offset. */

import * as runtime from "./ort.wasm.min.js";

// One thread: inference of such small networks takes less time than waking another thread.
runtime.env.wasm.numThreads = 1;
runtime.env.wasm.wasmPaths = { mjs: new URL("./ort-wasm-simd-threaded.js", import.meta.url).href };

let wasmBinary = null;

export async function fetched(name) {
    const response = await fetch(new URL(name, import.meta.url));
    if (!response.ok) {
        throw new Error(`cannot load ${name}: HTTP status ${response.status}`);
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

    /* Load the model of that precision and warm it up, so that the first prediction is not slower. */
    static async load(card, precision) {
        // Passed as bytes, so that the MIME type of the web server does not matter.
        wasmBinary ??= await fetched("ort-wasm-simd-threaded.wasm");
        runtime.env.wasm.wasmBinary = wasmBinary;
        const file = new Uint8Array(await fetched(card.models[precision].file));
        const session = await runtime.InferenceSession.create(file, { executionProviders: ["wasm"] });
        const model = new Model(session, card, precision);
        const { height, width, channels } = card.input;
        await model.predict({ height, width, channels, data: new Uint8Array(height * width * channels) });
        return model;
    }

    /* Probabilities (a Float32Array of K classes) for an image of the model's input size, and the time in ms. */
    predict(image) {
        // A session runs one inference at a time.
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
        // With NaN, the first class would be the prediction.
        if (!probabilities.every(Number.isFinite)) {
            throw new Error("the network computes NaN or infinity: the model is damaged or its training diverged");
        }
        return { probabilities, milliseconds: performance.now() - begin };
    }

    release() {
        return this.turn.then(() => this.session.release());
    }
}
