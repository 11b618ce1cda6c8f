// Pictures, sounds and videos that somebody attaches: read in the browser, sent within the request.

const KINDS = {
  "image/png": ["image"], "image/jpeg": ["image"], "image/webp": ["image"],
  "audio/wav": ["audio", "wav"], "audio/x-wav": ["audio", "wav"], "audio/wave": ["audio", "wav"], "audio/vnd.wave": ["audio", "wav"],
  "audio/mpeg": ["audio", "mp3"], "audio/mp3": ["audio", "mp3"], "audio/flac": ["audio", "flac"], "audio/x-flac": ["audio", "flac"],
  "audio/ogg": ["audio", "ogg"], "audio/mp4": ["audio", "m4a"], "audio/x-m4a": ["audio", "m4a"], "audio/aac": ["audio", "aac"],
  "audio/webm": ["audio", "webm"],
  "video/mp4": ["video"], "video/quicktime": ["video"], "video/webm": ["video"], "video/matroska": ["video"],
  "video/x-matroska": ["video"], "video/x-msvideo": ["video"], "video/avi": ["video"], "video/mpeg": ["video"], "video/ogg": ["video"],
};
const NAMES = { image: "pictures", audio: "sounds", video: "videos" };
const FORMATS = {
  image: "PNG, JPEG and WebP", audio: "WAV, MP3, FLAC, Ogg, M4A, AAC and WebM", video: "MP4, MOV, WebM, Matroska, AVI and MPEG",
};
const or = new Intl.ListFormat("en-GB", { type: "disjunction" });
const MOST_BYTES = 20 << 20;
export const MOST = 16;

export const accepted = (modalities) =>
  Object.entries(KINDS).filter(([, [kind]]) => modalities.includes(kind)).map(([type]) => type).join();

/** What can be attached, in words: "pictures, sounds or videos". */
export const kinds = (modalities) => or.format(Object.keys(NAMES).filter((kind) => modalities.includes(kind)).map((kind) => NAMES[kind]));

/** What a file becomes; throws an Error with words for people. */
export async function attachment(file, modalities) {
  const [kind, format] = KINDS[file.type] ?? [];
  if (!kind) {
    const known = Object.keys(FORMATS).filter((one) => modalities.includes(one)).map((one) => `${NAMES[one]} are ${FORMATS[one]}`);
    throw new Error(`${file.name} is of no kind that is taken: ${known.join("; ")}.`);
  }
  if (!modalities.includes(kind)) throw new Error(`This model takes no ${NAMES[kind]}.`);
  if (file.size > MOST_BYTES) throw new Error(`${file.name} is larger than 20 MiB.`);
  const uri = await new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error(`${file.name} cannot be read.`));
    reader.readAsDataURL(file);
  });
  const data = uri.slice(uri.indexOf(",") + 1);
  const url = `data:${file.type};base64,${data}`;
  const part = {
    image: () => ({ type: "image_url", image_url: { url } }),
    audio: () => ({ type: "input_audio", input_audio: { data, format } }),
    video: () => ({ type: "video_url", video_url: { url } }),
  }[kind]();
  return { name: file.name, kind, part, url: URL.createObjectURL(file) };
}
