import { createServer } from "node:net";

/** Rejects with the command that takes another port when nothing can listen on `port` of loopback. `flag`: that command up to the number. */
export function checkPortIsFree(port: number, flag: string): Promise<void> {
  return new Promise((resolve, reject) => {
    const server = createServer();
    server.once("error", (error: NodeJS.ErrnoException) => {
      const why = error.code === "EADDRINUSE" ? "is taken" : `cannot be used (${error.message})`;
      reject(new Error(`port ${port} ${why}; choose another: ${flag} ${port === 65_535 ? 8001 : port + 1}`));
    });
    server.listen(port, "127.0.0.1", () => server.close(() => resolve()));
  });
}
