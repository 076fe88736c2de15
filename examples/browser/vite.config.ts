import {createReadStream, existsSync, readFileSync} from "node:fs";
import {join} from "node:path";
import {defineConfig, type Plugin} from "vite";

const WASM = join(import.meta.dirname, "node_modules/@litertjs/core/wasm");
// LiteRT.js picks one of the two by what the browser can do; both run on one thread.
const FILES = ["litert_wasm_internal", "litert_wasm_compat_internal"].flatMap((name) => [`${name}.js`, `${name}.wasm`]);

/** Serves LiteRT.js' runtime from the page's own `litert/`: from node_modules in development, as files of the build. */
function runtime(): Plugin {
  return {
    name: "litert-runtime",
    configureServer(server) {
      server.middlewares.use("/litert", (request, response, next) => {
        const name = (request.url ?? "").slice(1).split("?")[0];
        if (!FILES.includes(name) || !existsSync(join(WASM, name))) return next();
        response.setHeader("Content-Type", name.endsWith(".wasm") ? "application/wasm" : "text/javascript");
        createReadStream(join(WASM, name)).pipe(response);
      });
    },
    generateBundle() {
      for (const name of FILES) {
        this.emitFile({type: "asset", fileName: `litert/${name}`, source: readFileSync(join(WASM, name))});
      }
    },
  };
}

export default defineConfig({
  base: "./", // relative addresses: the build works under any path
  appType: "mpa", // a missing model is a 404, not this page once more
  build: {chunkSizeWarningLimit: 10_000},
  plugins: [runtime()],
});
