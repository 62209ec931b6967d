// Sets the remembered theme before the first paint; a classic script, so that nothing flashes.
try {
  const kept = localStorage.getItem("dt-theme");
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
} catch { /* storage is forbidden here: the system's preference stands */ }
