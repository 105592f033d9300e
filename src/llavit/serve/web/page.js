// Runs once for the conversation's element. Clicks on words, examples and close buttons go to Python as `select`,
// with the data of the element that was clicked.
const chosen = (event) => {
  const target = event.target.closest("[data-act]");
  if (!target || !element.contains(target)) return;
  event.preventDefault();
  trigger("select", { ...target.dataset });
};
element.addEventListener("click", chosen);
element.addEventListener("keydown", (event) => {
  if ((event.key === "Enter" || event.key === " ") && event.target.matches(".word")) chosen(event);
});
// Follow an answer while it is written, unless the reader has scrolled away from the end.
let follows = true;
window.addEventListener(
  "scroll",
  () => {
    follows = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 120;
  },
  { passive: true },
);
watch("value", () => {
  if (follows && element.querySelector(".reply.running")) {
    window.scrollTo({ top: document.documentElement.scrollHeight });
  }
});
