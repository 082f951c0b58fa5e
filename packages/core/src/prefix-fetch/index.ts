export * from "./decide-fetch.ts";
