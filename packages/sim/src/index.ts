export {
  type Fault,
  PRODUCTION_DEFAULTS,
  type RouterFault,
  rolesOf,
  SIMULATION_DEFAULTS,
  type SimulationSpec,
  type WorkerQuirk,
} from "./cluster-spec.ts";
export { DEVICE_PROFILES, type DevicePrice, type DeviceProfile } from "./device-profile.ts";
export { deviceOf, FIRST_TOKEN_MESSAGES, type MeasuredProfile, measuredProfileFromJson } from "./measured-profile.ts";
export { type ClusterPlan, type PlanQuestion, planCluster } from "./plan-cluster.ts";
export * from "./policies/baselines.ts";
export { DynamoRouter } from "./policies/dynamo-router.ts";
export { type ProvisionedCluster, type ProvisionQuestion, provision } from "./provision.ts";
export { exponential, randomOf } from "./random.ts";
export type { StoreSpec } from "./simulated-store.ts";
export { Simulation, type SimulationResult, simulate } from "./simulation.ts";
export { goodputFactor, type Objective, type RunSummary, recordsOf, summarize } from "./summary.ts";
export {
  parseTrace,
  rateOf,
  scaleRate,
  sliceTrace,
  type Trace,
  type TraceFormat,
  type TraceRequest,
  traceFormat,
} from "./trace.ts";
