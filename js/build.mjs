// Builds what the Python package carries: the page module under the hash of its content, and the stub each widget model loads.
//
// `bundle.json` names the file and the hash of the sources it was made from; a test compares that with the sources.

import { createHash } from "node:crypto";
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { build, transform } from "esbuild";

const here = dirname(fileURLToPath(import.meta.url));
const out = join(here, "..", "sharedwidgets", "static");

const sources = readdirSync(join(here, "src"))
  .filter((name) => !name.endsWith(".test.ts") && name !== "vectors.ts")
  .sort();
const source = createHash("sha256");
for (const name of sources) source.update(`${name}\0`).update(readFileSync(join(here, "src", name)));

const bundled = await build({
  entryPoints: [join(here, "src", "index.ts")],
  bundle: true,
  format: "esm",
  target: "es2022",
  minify: true,
  legalComments: "none",
  write: false,
});
const page = bundled.outputFiles[0].contents;
const file = `page-${createHash("sha256").update(page).digest("hex").slice(0, 16)}.js`;
const stub = await transform(readFileSync(join(here, "src", "stub.js"), "utf8"), {
  minify: true,
  format: "esm",
  target: "es2022",
});

rmSync(out, { recursive: true, force: true });
mkdirSync(out, { recursive: true });
writeFileSync(join(out, file), page);
writeFileSync(join(out, "stub.js"), stub.code.replace("__FILE__", file));
writeFileSync(join(out, "bundle.json"), `${JSON.stringify({ file, source: source.digest("hex") }, null, 1)}\n`);
console.log(`${file} ${page.length} bytes, stub ${stub.code.length} bytes`);
