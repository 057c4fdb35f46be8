// Builds into page/dist, from where the gateway's build takes it into the program.
import { svelte } from '@sveltejs/vite-plugin-svelte';
import { defineConfig } from 'vite';

export default defineConfig({
  root: import.meta.dirname,
  plugins: [svelte({ compilerOptions: { runes: true } })],
  build: { outDir: 'dist', emptyOutDir: true, assetsInlineLimit: 0, target: 'es2022', modulePreload: { polyfill: false } },
  // `npm run page:dev`: the page from its sources, in front of a gateway that runs.
  server: { proxy: { '/v1': 'http://127.0.0.1:8080', '/page.json': 'http://127.0.0.1:8080', '/ready': 'http://127.0.0.1:8080' } },
});
