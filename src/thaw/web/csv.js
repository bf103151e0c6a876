/* The table that `thaw predict --format csv` prints: image, class, probability, and the probability of each class. */

export function csvText(classes, entries) {
    const rows = entries.map(({ name, label, probability, probabilities }) => [
        name, label, probability.toFixed(6), ...Array.from(probabilities, (each) => each.toFixed(6)),
    ]);
    return [["image", "class", "probability", ...classes], ...rows].map((row) => `${row.map(quoted).join(",")}\n`).join("");
}

function quoted(cell) {
    return /[",\r\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell;
}
