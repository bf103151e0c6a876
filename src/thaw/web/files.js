/* The files of a drop, a paste or a selection, including those in folders: [{name, file}]; names include folders. */

const IMAGE_NAME = /\.(apng|avif|bmp|dib|gif|ico|jfif|jpe|jpeg|jpg|png|webp)$/i;

/* Files of an <input type=file>. */
export function chosenFiles(input) {
    return Array.from(input.files, (file) => ({ name: file.webkitRelativePath || file.name, file }));
}

/* Files of a drop. Call it while the event is handled; the browser discards the files after that. */
export async function droppedFiles(transfer) {
    const items = Array.from(transfer.items).filter((item) => item.kind === "file");
    const entries = items.map((item) => item.webkitGetAsEntry?.());
    const plain = Array.from(transfer.files, (file) => ({ name: file.name, file }));
    const hasFolder = entries.some((entry) => entry?.isDirectory);
    if (!hasFolder) {
        return { files: plain, hasFolder };
    }
    const files = [];
    for (const entry of entries) {
        await open(entry, files);
    }
    return { files, hasFolder };
}

async function open(entry, files) {
    if (entry?.isFile) {
        const file = await new Promise((resolve, reject) => entry.file(resolve, reject)).catch(() => null);
        if (file) {
            files.push({ name: entry.fullPath.replace(/^\//, ""), file });
        }
    } else if (entry?.isDirectory) {
        const reader = entry.createReader();
        const some = () => new Promise((resolve, reject) => reader.readEntries(resolve, reject)).catch(() => []);
        // A reader returns some entries per call, and none at the end.
        for (let entries = await some(); entries.length; entries = await some()) {
            for (const each of entries) {
                await open(each, files);
            }
        }
    }
}

/* Whether a file in a folder is an image, by its name or type. */
export function looksLikeImage({ name, file }) {
    return !/(^|\/)\./.test(name) && (IMAGE_NAME.test(name) || file.type.startsWith("image/"));
}
