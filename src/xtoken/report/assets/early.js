// Before anything is painted, so that a chosen theme does not flash.
try {
  const theme = localStorage.getItem("xtoken-theme");
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch (error) {
  // No storage (a file in a sandbox): the system's theme it is.
}
