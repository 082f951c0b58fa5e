import { availableParallelism } from "node:os";
import { defineConfig } from "vitest/config";

export default defineConfig({
  test: {
    include: [
      "packages/*/src/**/*.test.ts",
      "services/*/src/**/*.test.ts",
      "scripts/**/*.test.ts",
      "e2e/src/**/*.test.ts",
      "quality/src/**/*.test.ts",
    ],
    // Ends what hangs; how long a test takes is up to whatever else the machine does.
    testTimeout: 60_000,
    hookTimeout: 60_000,
    // What is waited for comes when the processors get to it; a second is not enough where others share them.
    expect: { poll: { timeout: 10_000 } },
    // Tests of real processes mostly wait for a lease or a restart: two files at a time even on two processors.
    maxWorkers: Math.max(2, availableParallelism() - 1),
  },
});
