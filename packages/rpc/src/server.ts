import type { Socket } from "node:net";
import type { DescService } from "@bufbuild/protobuf";
import {
  Server,
  ServerCredentials,
  type ServerDuplexStream,
  type ServerUnaryCall,
  type ServerWritableStream,
  type ServiceError,
  type sendUnaryData,
  type UntypedHandleCall,
} from "@grpc/grpc-js";
import { type Implementation, serviceDefinition } from "./binding.ts";
import { CHANNEL_OPTIONS } from "./channel-options.ts";
import { statusFromError } from "./errors.ts";
import { refuseStrangers } from "./tls/guard.ts";
import { listenSecurely, type SecureListener } from "./tls/secure-listener.ts";
import { PLAIN, type Transport } from "./transport.ts";

export interface RpcServer {
  /** Offers a service. A handler that throws ends its call with the thrown reason; one that returns ends its stream well. */
  add<S extends DescService>(service: S, implementation: Implementation<S>): void;
  /** Starts to listen on `host:port` (port 0: any) and answers with the address bound. */
  listen(address: string): Promise<string>;
  /** Stops taking calls, waits up to `graceMs` for running ones, then cuts them. */
  close(graceMs?: number): Promise<void>;
}

/** With mutual TLS, callers are let in by role (`tls/planes.ts`), and plain ones are refused with a reason. */
export function createServer({ certificates }: Transport = PLAIN): RpcServer {
  const server = new Server(certificates ? { ...CHANNEL_OPTIONS, interceptors: [refuseStrangers] } : CHANNEL_OPTIONS);
  let secureListener: SecureListener | undefined;
  return {
    add(service, implementation) {
      const handlers: Record<string, UntypedHandleCall> = {};
      for (const method of service.methods) {
        const handler = (implementation as Record<string, (...args: unknown[]) => Promise<unknown>>)[method.localName];
        if (handler === undefined) throw new Error(`${service.typeName}.${method.name} has no implementation`);
        switch (method.methodKind) {
          case "unary":
            handlers[method.localName] = (call: ServerUnaryCall<unknown, unknown>, done: sendUnaryData<unknown>) => {
              handler(call.request, call).then(
                (response) => done(null, response),
                (error: unknown) => done(statusFromError(error) as ServiceError),
              );
            };
            break;
          case "server_streaming":
            handlers[method.localName] = (call: ServerWritableStream<unknown, unknown>) => {
              runStream(call, () => handler(call.request, call));
            };
            break;
          case "bidi_streaming":
            handlers[method.localName] = (call: ServerDuplexStream<unknown, unknown>) => {
              runStream(call, () => handler(call));
            };
            break;
          case "client_streaming":
            throw new Error(`${service.typeName}.${method.name}: client streaming is not used in this project`);
        }
      }
      server.addService(serviceDefinition(service), handlers);
    },
    async listen(address) {
      const colon = address.lastIndexOf(":");
      if (certificates && !address.startsWith("unix:")) {
        // Connections arrive here decrypted, or refused; grpc-js asks the sockets who is behind them.
        const injector = server.createConnectionInjector(ServerCredentials.createInsecure());
        const host = address.slice(0, colon).replace(/^\[|\]$/g, "");
        const take = (connection: Socket) => injector.injectConnection(connection);
        const listening = listenSecurely(host, Number(address.slice(colon + 1)), certificates, take);
        secureListener = await listening.catch((error: Error) => {
          throw new Error(`cannot listen on ${address}: ${error.message}`);
        });
        return `${address.slice(0, colon)}:${secureListener.port}`;
      }
      return new Promise((resolve, reject) => {
        server.bindAsync(address, ServerCredentials.createInsecure(), (error, port) => {
          if (error) reject(new Error(`cannot listen on ${address}: ${error.message}`));
          else resolve(address.startsWith("unix:") ? address : `${address.slice(0, colon)}:${port}`);
        });
      });
    },
    close(graceMs = 2_000) {
      secureListener?.close();
      return new Promise((resolve) => {
        // A session that broke before it began is never reported closed: waiting ends here in any case.
        const cut = setTimeout(() => {
          server.forceShutdown();
          resolve();
        }, graceMs);
        server.tryShutdown(() => {
          clearTimeout(cut);
          resolve();
        });
      });
    },
  };
}

function runStream(
  call: ServerWritableStream<unknown, unknown> | ServerDuplexStream<unknown, unknown>,
  run: () => Promise<unknown>,
): void {
  // A cancelled peer surfaces as an error event on the write side; the handler learns of it through `cancelled`.
  call.on("error", () => undefined);
  run().then(
    () => call.end(),
    (error: unknown) => {
      if (!call.destroyed) call.emit("error", statusFromError(error));
    },
  );
}
