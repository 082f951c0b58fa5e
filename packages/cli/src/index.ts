export { collectTrace, type TraceSource } from "./collect-trace.ts";
export { type Jaeger, startJaeger } from "./jaeger/jaeger-process.ts";
export { type IssuedFiles, issueCertificates, issuedFiles } from "./local-cluster/certificates.ts";
export type { ClusterEvent, LocalClusterOptions } from "./local-cluster/cluster-options.ts";
export { type LocalCluster, OPERATOR, startLocalCluster } from "./local-cluster/local-cluster.ts";
export { childrenOf, isRunning } from "./local-cluster/process-tree.ts";
export { freePort } from "./local-cluster/redis-process.ts";
export type { ProcessHandle, ProcessKind } from "./local-cluster/service-process.ts";
export { type Prometheus, startPrometheus } from "./prometheus/prometheus-process.ts";
