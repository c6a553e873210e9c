const show = document.getElementById("show"), password = document.getElementById("password"), form = password.form;
show.parentElement.hidden = false;
show.addEventListener("change", () => { password.type = show.checked ? "text" : "password"; });
form.addEventListener("submit", () => {
  password.type = "password";
  setTimeout(() => { form.querySelector("button").disabled = true; });
});
addEventListener("pageshow", () => { form.querySelector("button").disabled = show.checked = false; });
