import type { Member } from "../running-cluster.ts";

export interface ScrapeOptions {
  readonly intervalS: number;
  readonly rulesFiles: readonly string[];
  readonly targetsFile: string;
}

/** Prometheus' configuration, as JSON, which is YAML. Targets come from a file that may change at any time. */
export function scrapeConfig({ intervalS, rulesFiles, targetsFile }: ScrapeOptions): string {
  const config = {
    global: { scrape_interval: `${intervalS}s`, evaluation_interval: `${intervalS}s` },
    rule_files: rulesFiles,
    scrape_configs: [{ job_name: "kvasir", file_sd_configs: [{ files: [targetsFile], refresh_interval: "5s" }] }],
  };
  return `${JSON.stringify(config, null, 2)}\n`;
}

/** The targets file: one group for each process, which is named by its id and not by an address that changes. */
export function targetsText(members: readonly Member[]): string {
  const groups = members.map(({ name, kind, adminAddress }) => ({
    targets: [adminAddress],
    labels: { job: `kvasir-${kind}`, instance: name },
  }));
  return `${JSON.stringify(groups, null, 2)}\n`;
}
