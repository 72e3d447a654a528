// JSON lines in, JSON lines out: {id, device, command, args} is answered by {id, result} or {id, error}.
import "./environment.mjs";
import { createInterface } from "node:readline";
import { Device, login, register } from "./device.mjs";

const devices = new Map();
const answer = (line) => process.stdout.write(JSON.stringify(line) + "\n");

const COMMANDS = {
  register,
  login,
  open: (args) => {
    devices.set(args.name, new Device(args));
  },
};

async function run({ device, command, args }) {
  if (device === undefined) return COMMANDS[command](args);
  return devices.get(device)[command](args ?? {});
}

process.on("unhandledRejection", (error) => console.error("unhandled:", error));
for await (const line of createInterface({ input: process.stdin })) {
  const request = JSON.parse(line);
  run(request).then(
    (result) => answer({ id: request.id, result: result ?? null }),
    (error) => answer({ id: request.id, error: String(error?.stack ?? error) }),
  );
}
process.exit(0);
