#!/usr/bin/env node
// Runs a Foundry tool of the npm packages and ends with its exit status, which the packages' own launchers lose: under them a
// failing test ends with zero. `node script/foundry.js forge test`
"use strict";

const { spawnSync } = require("node:child_process");
const path = require("node:path");

const PLATFORMS = { linux: "linux", darwin: "darwin", win32: "win32" };
const ARCHITECTURES = { x64: "amd64", arm64: "arm64" };

// The native program of forge, cast or anvil on this machine.
function binary(tool) {
    const suffix = `${PLATFORMS[process.platform]}-${ARCHITECTURES[process.arch]}`;
    const file = process.platform === "win32" ? `${tool}.exe` : tool;
    return path.join(__dirname, "..", "node_modules", "@foundry-rs", `${tool}-${suffix}`, "bin", file);
}

function run(tool, args, options = { stdio: "inherit" }) {
    const result = spawnSync(binary(tool), args, options);
    if (result.error) console.error(`${tool}: ${result.error.message}; has "npm ci" run here?`);
    return result.status ?? 1;
}

module.exports = { run };

if (require.main === module) process.exitCode = run(process.argv[2], process.argv.slice(3));
