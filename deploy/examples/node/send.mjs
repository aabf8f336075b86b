// node send.mjs "My pool pump is humming"
import { randomBytes, randomUUID } from "node:crypto";
import { createClient } from "redis";

const redis = await createClient({ url: process.env.REDIS_URL }).connect();
const traceparent = `00-${randomBytes(16).toString("hex")}-${randomBytes(8).toString("hex")}-01`;
const message = { text: process.argv[2], id: randomUUID(), traceparent };
await redis.xAdd("pointsman:queries", "*", message);
console.log(message.id);
await redis.close();
