// The module a page loads from the server: the widget's two calls, and those of a binding.

export { initialize, initializeBinding, render } from "./widget";
