export { FAKE_VOCAB_SIZE, fakeToken } from "./fake-device.ts";
export { FakeKernel, type FakeKernelOptions } from "./fake-kernel.ts";
export { type Faults, noFaults } from "./faults.ts";
