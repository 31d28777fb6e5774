// face-api's own face recognition network, run by TensorFlow.js on the pictures of make.py's `pattern(150, 150)`.
//
//   npm install --ignore-scripts @vladmandic/face-api@1.7.15 @tensorflow/tfjs@4.22.0 @tensorflow/tfjs-backend-wasm@4.22.0
//   node dlib.mjs "$PWD/node_modules" dlib.json

import fs from "node:fs";
import { createRequire } from "node:module";

const [modules, out] = process.argv.slice(2);
const package_ = `${modules}/@vladmandic/face-api`;
const faceapi = createRequire(`${modules}/here.js`)(`${package_}/dist/face-api.node-wasm.js`);
const tf = faceapi.tf;
await tf.setBackend("cpu");

const size = 150;
const pictures = [0, 1].map((k) => {
  const values = new Float32Array(size * size * 3);
  for (let y = 0; y < size; y++)
    for (let x = 0; x < size; x++)
      for (let c = 0; c < 3; c++) {
        const wave = Math.sin(0.07 * x * (1 + k) + 0.11 * y + 2.1 * c) * Math.cos(0.05 * y - 0.03 * x * (c + 1) + k);
        values[(y * size + x) * 3 + c] = (Math.fround(wave) + 1) * 127.5;
      }
  return tf.tensor3d(values, [size, size, 3]);
});

const network = new faceapi.FaceRecognitionNet();
const manifest = JSON.parse(fs.readFileSync(`${package_}/model/face_recognition_model-weights_manifest.json`));
const binary = fs.readFileSync(`${package_}/model/face_recognition_model.bin`);
network.loadFromWeightMap(tf.io.decodeWeights(new Uint8Array(binary).buffer, manifest[0].weights));
const vectors = network.forwardInput(new faceapi.NetInput(pictures));
fs.writeFileSync(out, JSON.stringify({ embedding: vectors.arraySync() }) + "\n");
