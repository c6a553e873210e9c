const show = document.getElementById("show"), password = document.getElementById("password"), form = password.form;
show.parentElement.hidden = false;
show.addEventListener("change", () => { password.type = show.checked ? "text" : "password"; });
form.addEventListener("submit", () => {
  password.type = "password";
  const button = form.querySelector("button");
  setTimeout(() => { button.disabled = true; });
  setTimeout(() => { button.disabled = false; }, 15000);
});
addEventListener("pageshow", () => { form.querySelector("button").disabled = show.checked = false; });
