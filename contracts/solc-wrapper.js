#!/usr/bin/env node
// Speaks the command line of a native solc that forge needs (--version, --standard-json), over the solc of npm, so that building
// needs no download but npm's.
"use strict";

const fs = require("node:fs");
const path = require("node:path");
const solc = require("solc");

const args = process.argv.slice(2);

function readStdin() {
    return fs.readFileSync(0, "utf8");
}

// A pipe may take less than all at once.
function writeStdout(text) {
    let rest = Buffer.from(text);
    while (rest.length > 0) {
        try {
            rest = rest.subarray(fs.writeSync(1, rest));
        } catch (error) {
            if (error.code !== "EAGAIN") throw error;
        }
    }
}

// The folders in which a source that the input does not carry may lie.
function importRoots() {
    const roots = [process.cwd()];
    args.forEach((arg, index) => {
        if (arg === "--base-path" || arg === "--include-path") roots.push(args[index + 1]);
        if (arg === "--allow-paths") roots.push(...args[index + 1].split(","));
    });
    return roots;
}

function findImport(name) {
    for (const root of importRoots()) {
        const file = path.resolve(root, name);
        if (fs.existsSync(file)) return { contents: fs.readFileSync(file, "utf8") };
    }
    return { error: `${name} not found` };
}

if (args.includes("--version")) {
    // forge parses the version as a native build prints it.
    const version = solc.version().replace(".Emscripten.clang", ".Linux.g++");
    writeStdout(`solc, the solidity compiler commandline interface\nVersion: ${version}\n`);
} else if (args.includes("--standard-json")) {
    writeStdout(solc.compile(readStdin(), { import: findImport }));
} else {
    console.error(`solc-wrapper.js: unsupported arguments: ${args.join(" ")}`);
    process.exitCode = 1;
}
