// Colours of curves, by their place among them.
const COLOURS = ["--c1", "--c2", "--c3", "--c4", "--c5", "--c6", "--c7", "--c8"];
export const colour = index => COLOURS[index % COLOURS.length];
