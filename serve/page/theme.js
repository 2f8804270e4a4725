// Light or dark: the system's setting until the reader uses the switch. Not a module, so it runs before the page is drawn.
{
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const shown = () => root.dataset.theme ?? (dark.matches ? "dark" : "light");

  let chosen = null;
  try {
    chosen = localStorage.getItem("han-theme");
  } catch {
    // without storage the choice lasts as long as the page
  }
  if (chosen === "light" || chosen === "dark") root.dataset.theme = chosen;

  document.addEventListener("DOMContentLoaded", () => {
    const button = document.getElementById("theme");
    const name = () => {
      button.textContent = shown() === "dark" ? "Light" : "Dark";
      button.ariaLabel = `${button.textContent} colours`;
    };
    button.addEventListener("click", () => {
      root.dataset.theme = shown() === "dark" ? "light" : "dark";
      name();
      try {
        localStorage.setItem("han-theme", root.dataset.theme);
      } catch {
        // as above
      }
    });
    dark.addEventListener("change", name);
    name();
  });
}
