export * from "./kvasir-error.ts";
