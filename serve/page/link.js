// A review as the fragment of an address: #t=<base64url of its raw deflate>. A fragment is never sent to a server.

const LONGEST_LINK = 8_000; // characters that mail and chat programs let through
const LONGEST_TEXT = 1_000_000; // bytes: a link inflates to what a short program can hold, or not at all
const MARK = "#t=";

/** The address that leads to this text, or null if it would be too long to share. */
export async function linkTo(text) {
  const packed = new Blob([text]).stream().pipeThrough(new CompressionStream("deflate-raw"));
  const bytes = new Uint8Array(await new Response(packed).arrayBuffer());
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  const code = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const link = location.href.split("#")[0] + MARK + code;
  return link.length <= LONGEST_LINK ? link : null;
}

/** The text that the page's address holds, null if it holds none. Throws if the link is damaged. */
export async function linked() {
  if (!location.hash.startsWith(MARK)) return null;
  const binary = atob(location.hash.slice(MARK.length).replaceAll("-", "+").replaceAll("_", "/"));
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
  return text + decoder.decode();
}
