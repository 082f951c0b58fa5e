export { ROUTER_FLAGS } from "./flags.ts";
export { Router, type RouterLog } from "./router.ts";
export { routerService } from "./router-service.ts";
export { type RouterValues, runRouter } from "./run-router.ts";
