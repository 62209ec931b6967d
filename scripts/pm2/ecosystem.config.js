// Nodes under pm2, one app for each file of settings:
//
//   pm2 start scripts/pm2/ecosystem.config.js                                      # .env; it says ROLE=miner, validator or owner
//   ENV_FILE=.env.miner,.env.validator pm2 start scripts/pm2/ecosystem.config.js   # two nodes: a hotkey and a port each
//   pm2 stop miner-HOTKEY                  # ends within 15 s and leaves no process behind
//   pm2 startup && pm2 save                # all of it again at every start of this machine
//
// A node keeps its own rotated log; pm2's files of its output grow by about 100 kB a day (pm2 install pm2-logrotate).

const fs = require("fs");
const path = require("path");

const root = path.resolve(__dirname, "..", "..");

// As docker, systemd and run_node.sh read it: NAME=VALUE, # comments, values bare or in quotes, nothing expanded.
function read(file) {
  let text;
  try {
    text = fs.readFileSync(file, "utf8");
  } catch (error) {
    throw new Error(`${file} cannot be read; make it: cp .env.example ${file}, and edit it`);
  }
  const values = {};
  text.split(/\r?\n/).forEach((line, index) => {
    line = line.trim();
    if (line === "" || line.startsWith("#")) return;
    const found = /^([A-Za-z_][A-Za-z0-9_]*)=(.*)$/.exec(line);
    if (found === null) throw new Error(`${file}:${index + 1}: expected NAME=VALUE, got '${line}'`);
    values[found[1]] = found[2].replace(/^(["'])(.*)\1$/, "$2");
  });
  return values;
}

function app(name) {
  const file = path.resolve(root, name);
  const env = read(file);
  const role = process.env.ROLE || env.ROLE;
  if (!["miner", "validator", "owner"].includes(role)) {
    throw new Error(`${file}: ROLE=${role || ""}: expected miner, validator or owner`);
  }
  const updates = /^(1|true|yes|on)$/i.test(env.DT_AUTO_UPDATE || "");
  const given = (process.env.NODE_ARGUMENTS || "").split("\n").filter((word) => word !== "");
  return {
    name: `${role}-${env.DT_WALLET_HOTKEY || "default"}`,
    cwd: root,
    script: updates ? "scripts/launch.py" : `neurons/${role}.py`,
    args: updates ? [role, ...given] : given,
    interpreter: path.resolve(root, env.DT_VENV || ".venv", "bin", "python"),
    env: { ...env, PYTHONPATH: root },
    // A node ends its own children, and those end with it when it is killed; a signal to all of them at once would take
    // the network from a node that is saying goodbye.
    treekill: false,
    kill_timeout: 20000, // it leaves within 15 s
    // Wrong input; not registered; the hotkey runs elsewhere: a person is needed (the log says for what; pm2 calls that
    // "waiting restart", and waits for ever). Not 0: pm2 takes every death by a signal for it, an out-of-memory kill too.
    stop_exit_codes: [2, 3, 5],
    exp_backoff_restart_delay: 1000, // up to 15 s
    min_uptime: 60000,
    max_restarts: 50, // that last less than a minute, in its first 50 minutes
    time: false, // every line has its own
  };
}

module.exports = { apps: (process.env.ENV_FILE || ".env").split(",").map(app) };
