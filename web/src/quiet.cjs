// Stands in for the package "debug", by esbuild's --alias (build.sh). JsSIP logs whole SIP messages
// through it, Authorization and all, to anybody who sets a key in localStorage. This page logs nothing.
// JsSIP asks for it both as require("debug")(name) and as require("debug").default(name).

const nothing = Object.assign(() => {}, { enabled: false });
const debug = () => nothing;

module.exports = Object.assign(debug, { default: debug, enable() {}, disable() {} });
