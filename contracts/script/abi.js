#!/usr/bin/env node
// Writes abi/ZORAIComputeEscrow.json, the committed ABI and code that clients are built from, out of the last build: the creation
// code, which they deploy, and the deployed code with the places of its immutables, by which they know the contract.
// With --check it writes nothing, and fails if the committed file is not what the source compiles to.
"use strict";

const fs = require("node:fs");
const path = require("node:path");

const root = path.join(__dirname, "..");
const name = "ZORAIComputeEscrow";
const built = JSON.parse(fs.readFileSync(path.join(root, "out", `${name}.sol`, `${name}.json`), "utf8"));
const committed = path.join(root, "abi", `${name}.json`);

const { compiler, settings } = built.metadata;
const text = `${JSON.stringify(
    {
        contractName: name,
        compiler: {
            version: compiler.version,
            evmVersion: settings.evmVersion,
            optimizerRuns: settings.optimizer.runs,
        },
        abi: built.abi,
        bytecode: built.bytecode.object,
        deployedBytecode: built.deployedBytecode.object,
        immutables: Object.values(built.deployedBytecode.immutableReferences)
            .flat()
            .sort((a, b) => a.start - b.start),
    },
    null,
    2,
)}\n`;

if (process.argv.includes("--check")) {
    const present = fs.existsSync(committed) ? fs.readFileSync(committed, "utf8") : "";
    if (present !== text) {
        console.error(`abi/${name}.json is not what the source compiles to: run "npm run abi" and commit it`);
        process.exitCode = 1;
    }
} else {
    fs.mkdirSync(path.dirname(committed), { recursive: true });
    fs.writeFileSync(committed, text);
}
