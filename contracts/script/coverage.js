#!/usr/bin/env node
// Measures the tests' coverage of src/ and fails unless every line and every branch of it is covered.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const foundry = require("./foundry.js");

const root = path.join(__dirname, "..");
const report = path.join(root, "cache", "lcov.info");
fs.mkdirSync(path.dirname(report), { recursive: true });

const status = foundry.run(
    "forge",
    [
        "coverage",
        ...["--report", "lcov", "--report-file", report],
        ...["--no-match-coverage", "(test|script|node_modules)"],
        // The invariants would add time, and no line that the unit tests miss.
        ...["--match-path", "test/unit/*"],
    ],
    { cwd: root, stdio: ["ignore", "ignore", "inherit"] },
);
if (status !== 0) {
    console.error(`forge coverage failed (${status})`);
    process.exit(1);
}

let file = "";
const missed = [];
const seen = { lines: 0, branches: 0 };
for (const record of fs.readFileSync(report, "utf8").split("\n")) {
    const [kind, rest = ""] = [record.slice(0, record.indexOf(":")), record.slice(record.indexOf(":") + 1)];
    const fields = rest.split(",");
    if (kind === "SF") file = rest;
    if (kind === "DA" && ++seen.lines && fields[1] === "0") missed.push(`${file}:${fields[0]}: line`);
    if (kind === "BRDA" && ++seen.branches && (fields[3] === "0" || fields[3] === "-")) {
        missed.push(`${file}:${fields[0]}: branch ${fields[2]}`);
    }
}
console.log(`${seen.lines} lines and ${seen.branches} branches, ${missed.length} not covered`);
missed.forEach((place) => console.error(place));
if (missed.length > 0 || seen.branches === 0) process.exitCode = 1;
