// Lists the safetensors files of a Hub repository with @huggingface/hub, the parser of the Hub's
// own pages: npm install @huggingface/hub && HF_ENDPOINT=... HF_TOKEN=... node js_listing.mjs NS/NAME
import { listFiles, modelInfo, parseSafetensorsMetadata } from "@huggingface/hub";

const repo = process.argv[2];
const options = { repo, hubUrl: process.env.HF_ENDPOINT, accessToken: process.env.HF_TOKEN };

const model = await modelInfo({
  ...options,
  name: repo,
  additionalFields: ["library_name", "cardData", "tags"],
});
console.log(model.name, model.library_name, JSON.stringify(model.cardData ?? {}));

let files = 0;
let tensors = 0;
let bytes = 0;
for await (const { path, size } of listFiles({ ...options, recursive: true })) {
  if (!path.endsWith(".safetensors")) continue;
  const { sharded, header } = await parseSafetensorsMetadata({ ...options, path });
  if (sharded) throw new Error(`${path} was read as a shard`);
  const named = Object.entries(header).filter(([name]) => name !== "__metadata__");
  const end = Math.max(0, ...named.map(([, tensor]) => tensor.data_offsets[1]));
  console.log(`${path}: ${named.length} tensors, ${end} of ${size} bytes`);
  files += 1;
  tensors += named.length;
  bytes += size;
}
console.log(`${files} files, ${tensors} tensors, ${bytes} bytes`);
if (files === 0) process.exit(1);
