/* The table of `thaw predict --format csv`: image, class, probability, and the probability of each class. */

// Control characters, bidirectional and invisible marks, line separators, lone surrogates; as in thaw's quoting.py.
const UNSAFE = new RegExp(
    "[\\u0000-\\u001f\\u007f-\\u009f\\u00ad\\u061c\\u180e\\u200b\\u200e\\u200f\\u2028-\\u202e\\u2060-\\u206f\\ud800-\\udfff" +
    "\\ufeff\\ufff9-\\ufffb\\ufffe\\uffff\\u{1bca0}-\\u{1bca3}\\u{1d173}-\\u{1d17a}\\u{e0000}-\\u{e007f}]", "gu",
);

const NAMED = { "\t": "\\t", "\n": "\\n", "\r": "\\r" };

/* A text on one line with unsafe characters escaped, by the rules of thaw's quoting.py. */
export function printable(text) {
    return String(text).replace(UNSAFE, (letter) => {
        const code = letter.codePointAt(0);
        if (code >= 0xdc80 && code <= 0xdcff) {
            return `\\x${(code - 0xdc00).toString(16)}`;
        }
        const [mark, digits] = code <= 0xff ? ["x", 2] : code <= 0xffff ? ["u", 4] : ["U", 8];
        return NAMED[letter] ?? `\\${mark}${code.toString(16).padStart(digits, "0")}`;
    });
}

/* A cell of a CSV; text that a spreadsheet would evaluate as a formula is prefixed with an apostrophe. */
function csvCell(cell) {
    if (typeof cell === "number") {
        return cell.toFixed(6);
    }
    const text = printable(cell).replace(/(^|;)(?=["\s]*[-=+@\uff1d\uff0b\uff0d\uff20])/g, "$1'");
    return /[",;]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

export function csvText(classes, entries) {
    const rows = entries.map(({ name, label, probability, probabilities }) => [name, label, probability, ...probabilities]);
    return [["image", "class", "probability", ...classes], ...rows].map((row) => `${row.map(csvCell).join(",")}\n`).join("");
}
