import { existsSync, readFileSync } from "node:fs";
import { DEVICE_PROFILES, type DeviceProfile, deviceOf, measuredProfileFromJson } from "@kvasir/sim";

/** A known profile, or a file that `kvasir profile steps` wrote; with what that measured beside devices. */
export interface ChosenProfile {
  readonly profile: DeviceProfile;
  /** Tokens in a block, and times beside the device's; absent of known profiles. */
  readonly measured?: { readonly blockSize: number; readonly rpcMs: number; readonly stepOverheadMs: number };
}

export function chosenProfile(name: string): ChosenProfile {
  const known = Object.hasOwn(DEVICE_PROFILES, name) ? DEVICE_PROFILES[name] : undefined;
  if (known !== undefined) return { profile: known };
  if (!existsSync(name)) {
    const names = Object.keys(DEVICE_PROFILES).join(", ");
    throw new Error(`there is no profile ${name}; use ${names}, or a file made by kvasir profile steps`);
  }
  const measured = measuredProfileFromJson(readFileSync(name, "utf8"));
  const { blockSize, messageMs: rpcMs, stepOverheadMs } = measured;
  return { profile: deviceOf(measured), measured: { blockSize, rpcMs, stepOverheadMs } };
}
