// node receive.mjs pool: handles one message after another; a message that is not acknowledged stays pending
import { createClient } from "redis";

const [topic, group] = [`pointsman:topic:${process.argv[2]}`, "node-desk"];
const redis = await createClient({ url: process.env.REDIS_URL }).connect();
await redis.xGroupCreate(topic, group, "0", { MKSTREAM: true }).catch((error) => error.message.startsWith("BUSYGROUP") || Promise.reject(error));
for (;;) {
  const read = await redis.xReadGroup(group, `node-${process.pid}`, { key: topic, id: ">" }, { COUNT: 1, BLOCK: 5000 });
  for (const { id, message } of read?.[0].messages ?? []) {
    console.log(JSON.stringify({ id: message.id, label: message["pointsman.label"], traceparent: message.traceparent }));
    await redis.xAck(topic, group, id);
  }
}
