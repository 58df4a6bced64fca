// What a script can measure of a page's accessibility. Every function gives the offenders.
window.measure = (() => {
  const visible = one => one.checkVisibility({visibilityProperty: true});
  const all = selector => [...document.querySelectorAll(selector)].filter(visible);
  const name = one => one.id || one.textContent.trim().slice(0, 40) || one.tagName;

  const parts = colour => colour.match(/[\d.]+/g).map(Number);
  const linear = value => value <= .04045 ? value / 12.92 : ((value + .055) / 1.055) ** 2.4;
  const light = colour => parts(colour).slice(0, 3).reduce((sum, value, n) => sum + [.2126, .7152, .0722][n] * linear(value / 255), 0);
  const ground = element => {
    for (let at = element; at; at = at.parentElement) {
      const colour = getComputedStyle(at).backgroundColor, [, , , alpha = 1] = parts(colour);
      if (alpha > 0) return colour;
    }
    return "rgb(255, 255, 255)";
  };
  const ratio = one => {
    const [high, low] = [light(getComputedStyle(one).color), light(ground(one))].sort((a, b) => b - a);
    return (high + .05) / (low + .05);
  };
  const hasText = one => one.matches("input[type=text], select") || [...one.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());

  return {
    // Text on a ground of less than 7:1, whatever its size. Grounds are plain colours here.
    lowContrast: () => all("body *").filter(one => hasText(one) && !one.matches("script, option") && ratio(one) < 7)
      .map(one => [name(one), Math.round(ratio(one) * 100) / 100]),

    // What is pressed and is smaller than 44 x 44 CSS pixels; of a box with a label all of the label can be pressed.
    smallTargets: () => all("button, a, input, select, canvas").filter(one => !one.closest("[aria-hidden]"))
      .map(one => one.matches("[type=radio], [type=checkbox]") ? one.closest("label") : one)
      .filter(one => Math.min(one.getBoundingClientRect().width, one.getBoundingClientRect().height) < 44).map(name),

    // What sticks out to the right, so that one would have to scroll in two directions.
    stickingOut: () => all("body *").filter(one => one.getBoundingClientRect().right > document.documentElement.clientWidth + 1).map(name),

    // What is pressed or typed in, and has no border that is seen where the system's colours replace ours.
    noBorder: () => all("button, .button, .main, input[type=text], select, #pad").filter(one => {
      const style = getComputedStyle(one);
      return style.borderTopStyle === "none" || parseFloat(style.borderTopWidth) < 1
        || style.borderTopColor === getComputedStyle(document.body).backgroundColor;
    }).map(name),
  };
})();
