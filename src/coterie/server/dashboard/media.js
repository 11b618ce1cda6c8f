// Pictures and sounds that somebody attaches: read in the browser, sent within the request.

const KINDS = {
  "image/png": ["image"], "image/jpeg": ["image"], "image/webp": ["image"],
  "audio/wav": ["audio", "wav"], "audio/x-wav": ["audio", "wav"], "audio/wave": ["audio", "wav"], "audio/vnd.wave": ["audio", "wav"],
  "audio/mpeg": ["audio", "mp3"], "audio/mp3": ["audio", "mp3"], "audio/flac": ["audio", "flac"], "audio/x-flac": ["audio", "flac"],
};
const MOST_BYTES = 20 << 20;
export const MOST = 16;

export const accepted = (modalities) =>
  Object.entries(KINDS).filter(([, [kind]]) => modalities.includes(kind)).map(([type]) => type).join();

/** What a file becomes; throws an Error with words for people. */
export async function attachment(file, modalities) {
  const [kind, format] = KINDS[file.type] ?? [];
  if (!kind) throw new Error(`${file.name} is neither PNG, JPEG, WebP, WAV, MP3 nor FLAC.`);
  if (!modalities.includes(kind)) throw new Error(`This model takes no ${kind === "image" ? "pictures" : "sounds"}.`);
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than 20 MiB.`);
  const uri = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
  const data = uri.slice(uri.indexOf(",") + 1);
  const part = kind === "image"
    ? { type: "image_url", image_url: { url: `data:${file.type};base64,${data}` } }
    : { type: "input_audio", input_audio: { data, format } };
  return { name: file.name, kind, part, url: URL.createObjectURL(file) };
}
