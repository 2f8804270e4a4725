// A review as the fragment of an address: #t=<base64url of its raw deflate>&m=<muted sentences>. Browsers send no fragment to a server.

const LONGEST_LINK = 8_000; // characters that mail and chat programs let through
const LONGEST_TEXT = 1_000_000; // bytes that a link may inflate to
const MARK = "#t=";
const MUTED = "&m=";

/** The address of this text with these muted sentences (a set of numbers from 0), or null if it is too long to share. */
export async function linkTo(text, muted) {
  const packed = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(packed).arrayBuffer());
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  const code = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const numbers = [...muted].sort((one, other) => one - other).join();
  const link = location.href.split("#")[0] + MARK + code + (numbers && MUTED + numbers);
  return link.length <= LONGEST_LINK ? link : null;
}

/** Text and muted sentences of the page's address, null if it has none. Throws if the link is damaged. */
export async function linked() {
  if (!location.hash.startsWith(MARK)) return null;
  const [code, numbers = ""] = location.hash.slice(MARK.length).split(MUTED);
  if (!/^[\d,]*$/.test(numbers)) throw new RangeError("the muted sentences are not numbers");
  const binary = atob(code.replaceAll("-", "+").replaceAll("_", "/"));
  const packed = new Blob([Uint8Array.from(binary, (character) => character.charCodeAt(0))]).stream();
  const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
  let text = "";
  let size = 0;
  const reader = packed.pipeThrough(new DecompressionStream("deflate-raw")).getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    size += part.value.length;
    if (size > LONGEST_TEXT) throw new RangeError("the linked text is too long");
    text += decoder.decode(part.value, { stream: true });
  }
  return { text: text + decoder.decode(), muted: numbers ? numbers.split(",").map(Number) : [] };
}
