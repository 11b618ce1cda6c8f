// The sound of an answer: played as it comes, and kept as a WAV file to be heard again.

const RATE = 24000;
const AHEAD_S = 0.1; // what is there of the first piece before it is heard

const header = (nbytes) => {
  const view = new DataView(new ArrayBuffer(44));
  const text = (at, letters) => [...letters].forEach((letter, i) => view.setUint8(at + i, letter.charCodeAt(0)));
  text(0, "RIFF");
  view.setUint32(4, nbytes + 36, true);
  text(8, "WAVEfmt ");
  view.setUint32(16, 16, true);
  view.setUint16(20, 1, true);
  view.setUint16(22, 1, true);
  view.setUint32(24, RATE, true);
  view.setUint32(28, 2 * RATE, true);
  view.setUint16(32, 2, true);
  view.setUint16(34, 16, true);
  text(36, "data");
  view.setUint32(40, nbytes, true);
  return view.buffer;
};

export class Sound {
  constructor() {
    this.pieces = [];
    this.context = new AudioContext({ sampleRate: RATE });
    this.next = 0;
  }

  /** Takes a piece: 16-bit samples in base64. */
  take(data) {
    const bytes = Uint8Array.from(atob(data), (letter) => letter.charCodeAt(0));
    if (!bytes.length) return;
    this.pieces.push(bytes);
    const values = new Int16Array(bytes.buffer);
    const buffer = this.context.createBuffer(1, values.length, RATE);
    buffer.copyToChannel(Float32Array.from(values, (value) => value / 32768), 0);
    const source = this.context.createBufferSource();
    source.buffer = buffer;
    source.connect(this.context.destination);
    this.next = Math.max(this.next, this.context.currentTime + AHEAD_S);
    source.start(this.next);
    this.next += buffer.duration;
  }

  /** No more will come: what was scheduled is played to its end, or is silent at once. */
  async end({ silent = false } = {}) {
    if (!silent) await new Promise((ended) => setTimeout(ended, 1000 * Math.max(0, this.next - this.context.currentTime)));
    await this.context.close();
  }

  /** All of it as a file; null if there is none. */
  file() {
    const nbytes = this.pieces.reduce((sum, piece) => sum + piece.length, 0);
    return nbytes ? new Blob([header(nbytes), ...this.pieces], { type: "audio/wav" }) : null;
  }
}
